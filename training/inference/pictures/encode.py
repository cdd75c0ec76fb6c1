"""Writes a picture in the format of its name, with all that the format can hold of it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from datagen.errors import FlowmapsrError
from datagen.photos.color import composite
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata, exif_of, xmp_packet
from training.inference.pictures.png import LEVEL, PngRows
from training.inference.pictures.profile import in_profile
from training.inference.pictures.tiff import TiffRows, tiff_file

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WebP", ".avif": "AVIF",
}  # fmt: skip
"""What can be written, by the suffix of a name."""
QUALITY = {"JPEG": 95, "WebP": 95, "AVIF": 90}
"""Used where none is asked for; the others lose nothing."""
_DEEP = ("PNG", "TIFF")
_LONGEST_SIDE = {"JPEG": 65_500, "WebP": 16_383, "AVIF": 32_768}
_JPEG_SEGMENT = 65_000


def check_size(size: tuple[int, int], format: str) -> None:
    """Refuses sides that a format cannot hold, before the picture is made.

    Raises:
        FlowmapsrError: one is longer.
    """
    longest = _LONGEST_SIDE.get(format, 2**31 - 1)
    if max(size) > longest:
        raise FlowmapsrError(
            f"{size[0]}x{size[1]} pixels are too many for {format}, whose sides have at most "
            f"{longest}: use a name that ends in .png or .tif, or a smaller scale"
        )


def check_streamed(size: tuple[int, int], format: str) -> None:
    """Refuses formats that are not written row by row.

    Raises:
        FlowmapsrError: the format is another than PNG and TIFF.
    """
    if format in _DEEP:
        return
    longest = _LONGEST_SIDE[format]
    raise FlowmapsrError(
        f"{size[0]}x{size[1]} pixels are too many to be held whole, as {format} needs (its sides "
        f"have at most {longest}, and it is not written row by row): give the photo by itself and "
        "an --output that ends in .tif or .png, or use a smaller scale"
    )


def write_bands(
    stream: IO[bytes], bands: Iterable[Picture], size: tuple[int, int], format: str
) -> list[str]:
    """Writes a picture that comes in rows from top to bottom, as PNG or BigTIFF; returns what of it
    the format could not hold.

    Args:
        stream: seekable.
        size: (width, height) of all of it.
        format: one that `check_streamed` takes.
    """
    file: PngRows | TiffRows | None = None
    notes: list[str] = []
    for band in bands:
        pixels, profile, notes = _file_colors(band)
        if band.alpha is not None:
            pixels = np.dstack([pixels, band.alpha])
        if file is None:
            channels = 1 if pixels.ndim == 2 else pixels.shape[2]
            metadata = replace(band.metadata, profile=profile)
            kind = TiffRows if format == "TIFF" else PngRows
            file = kind(stream, size, channels, pixels.dtype, metadata)
        file.write(pixels)
    assert file is not None, "a picture has rows"
    file.end()
    return notes


def encode(picture: Picture, format: str, quality: int | None = None) -> tuple[bytes, list[str]]:
    """The file, and what of the picture the format could not hold.

    Raises:
        FlowmapsrError: the format cannot hold such a picture.
    """
    picture, notes = _fitted(picture, format)
    pixels, profile, lost = _file_colors(picture)
    metadata = replace(picture.metadata, profile=profile)
    picture = replace(picture, metadata=metadata)
    if picture.alpha is not None:
        pixels = np.dstack([pixels, picture.alpha])
    if format == "TIFF":
        return tiff_file(pixels, metadata), notes + lost
    if pixels.dtype == np.uint16:
        return _deep_png(pixels, metadata), notes + lost
    data, left_out = _by_pillow(pixels, picture, format, quality)
    return data, [*notes, *lost, *left_out]


def _fitted(picture: Picture, format: str) -> tuple[Picture, list[str]]:
    """The picture without what the format does not have."""
    notes = []
    if picture.rgb.dtype == np.uint16 and format not in _DEEP:
        notes.append(f"its 16 bits became 8, which is what {format} is written with")
        rgb, alpha = (
            None if one is None else ((one.astype(np.uint32) + 128) // 257).astype(np.uint8)
            for one in (picture.rgb, picture.alpha)
        )
        assert rgb is not None
        picture = replace(picture, rgb=rgb, alpha=alpha)
    if picture.alpha is not None and format == "JPEG":
        notes.append("its transparency became white, as JPEG has none")
        rgb = composite(picture.rgb, picture.alpha, 255)
        picture = replace(picture, rgb=rgb, alpha=None)
    return picture, notes


def _file_colors(picture: Picture) -> tuple[np.ndarray, bytes | None, list[str]]:
    """Pixels (H, W[, 3]) in the colors of the picture's profile, and that profile."""
    profile, gray = picture.metadata.profile, picture.gray
    if profile is not None:
        of_gray = profile[16:20] == b"GRAY"
        if gray or not of_gray:
            pixels = in_profile(picture.rgb, profile, gray=of_gray)
            if pixels is not None:
                return pixels, profile, []
        notes = ["its color profile cannot be written to and is left out: the colors are sRGB"]
    else:
        notes = []
    return (picture.rgb[..., 0] if gray else picture.rgb), None, notes


def _by_pillow(
    pixels: np.ndarray, picture: Picture, format: str, quality: int | None
) -> tuple[bytes, list[str]]:
    metadata, notes = picture.metadata, []
    exif, xmp = exif_of(metadata), None if metadata.xmp is None else xmp_packet(metadata.xmp)
    options: dict[str, Any] = {"icc_profile": metadata.profile}
    if metadata.dpi is not None and format in ("PNG", "JPEG"):
        options["dpi"] = metadata.dpi
    if format in QUALITY:
        options["quality"] = quality or QUALITY[format]
    if format == "PNG":
        options["compress_level"] = LEVEL
        options["pnginfo"] = chunks = PngImagePlugin.PngInfo()
        if xmp is not None:
            chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif format == "WebP":  # has a color for four pixels only
        options["use_sharp_yuv"] = True
    elif format == "AVIF":
        options["subsampling"] = "4:4:4"
    elif format == "JPEG":
        options["subsampling"] = 0
        if len(exif.tobytes()) > _JPEG_SEGMENT:
            details = dict(metadata.exif.get(ExifTags.IFD.Exif, {}))
            details.pop(ExifTags.Base.MakerNote, None)
            exif[ExifTags.IFD.Exif] = details
            notes.append("the camera maker's part of its EXIF is too long for JPEG")
        if len(exif.tobytes()) > _JPEG_SEGMENT:
            exif = Image.Exif()
            notes[-1] = "its EXIF is too long for JPEG"
        if xmp is not None and len(xmp) > _JPEG_SEGMENT:
            notes.append("its XMP is too long for JPEG")
            xmp = None
    if xmp is not None and format != "PNG":
        options["xmp"] = xmp
    if len(exif):
        options["exif"] = exif.tobytes()
    stream = io.BytesIO()
    try:
        Image.fromarray(pixels).save(stream, format, **options)
    except (OSError, ValueError, MemoryError) as error:
        raise FlowmapsrError(f"cannot be written as {format}: {error}; use another name") from error
    return stream.getvalue(), notes


def _deep_png(pixels: np.ndarray, metadata: Metadata) -> bytes:
    stream = io.BytesIO()
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    file = PngRows(stream, pixels.shape[1::-1], channels, pixels.dtype, metadata)
    file.write(pixels)
    file.end()
    return stream.getvalue()

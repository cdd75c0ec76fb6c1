"""Turns the bytes of an image file into upright 8-bit sRGB pixels, or a short reason why not.

`read_header` decides what it can without decoding any pixel.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

from datagen.errors import FlowmapsrError
from datagen.photos import damage
from datagen.photos.color import UnsupportedPixels, composite, strips
from datagen.photos.decoding_memory import RESERVED_BYTES
from datagen.photos.headers import (
    DECODER_ERRORS,
    ImageHeader,
    check_tiff,
    header_of,
    orientation,
    tiff_tags,
    webp_header,
)
from datagen.photos.heic import HEIC_IS_READ, HEIC_SUFFIXES, is_heic
from datagen.photos.quality import sharpness
from datagen.settings import FilterSettings, ImageSettings

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff",
     ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
     *(HEIC_SUFFIXES if HEIC_IS_READ else ())}
)  # fmt: skip
FILTERED = frozenset(
    {"below min_side", "aspect ratio", "jpeg quality", "blurred", "gray", "cmyk", "16 bit"}
)
"""Reasons of sound photos, which a recipe that sets no `filters` and no `images` would keep."""
# Decoders allowed for untrusted input: some of Pillow's others start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM",
            *(["HEIF"] if HEIC_IS_READ else []))  # fmt: skip
_MAGIC = 16  # bytes by which Pillow recognizes a format
_BY_FIRST_BYTES = ("not an image", "too large", "heic without pillow-heif")
_TIFF = (b"II", b"MM")
MOST_PIXELS = 178_956_970
"""Of a picture: Pillow's limit for files that are made to fill memory; 100 megapixels are real."""
_BACKGROUND = {"white": 255, "black": 0}
_DEFAULTS = ImageSettings(damaged="accept")

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # photos are decoded side by side, one core each

# Pillow warns about half as many pixels, and about every odd byte of EXIF.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageRejected(FlowmapsrError):
    """An image that cannot be used; `reason` is short and stable, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooManyPixels(ImageRejected):
    """A picture of more pixels than are allowed."""

    def __init__(self) -> None:
        super().__init__("too large")


class HeaderIncomplete(Exception):
    """More header bytes are needed."""


@dataclass(frozen=True)
class LoadedImage:
    """A picture as it lies in its file, and the EXIF orientation that is still to be undone."""

    pixels: Image.Image
    orientation: int
    header: ImageHeader


@dataclass(frozen=True)
class DecodedImage:
    """Upright pixels: `rgb` uint8 (H, W, 3) in sRGB, `alpha` uint8 (H, W), None if opaque; and what
    they were made of."""

    rgb: np.ndarray
    alpha: np.ndarray | None
    loaded: LoadedImage


class _Head(io.BytesIO):
    """Remembers whether anything beyond its end was read."""

    cut = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.cut = self.cut or size is None or size < 0 or len(data) < size
        return data


def read_header(
    head: bytes, *, size: int, images: ImageSettings, filters: FilterSettings
) -> tuple[int, int]:
    """(width, height) as displayed, from the first bytes of a file of `size` bytes; decodes no
    pixels.

    64 KB are enough for most files. `decode_photo` may still reject it.

    Raises:
        HeaderIncomplete: more bytes are needed.
        ImageRejected: what the header decides: "empty file", "not an image", "heic without
            pillow-heif", "truncated", "corrupt", "too large", "animated", "gray", "cmyk", "16 bit",
            "too small", "aspect ratio", "jpeg quality".
    """
    complete = len(head) >= size
    if len(head) < _MAGIC and not complete:
        raise HeaderIncomplete
    memory = RESERVED_BYTES * filters.max_megapixels * 1e6
    if size > memory:
        raise ImageRejected("too large")
    header = _header(head, complete)
    _check_kind(header, images)
    _check_filters(header, filters)
    if header.decoding_bytes + size > memory:
        raise ImageRejected("too large")
    return header.width, header.height


def decode_photo(data: bytes, images: ImageSettings) -> np.ndarray:
    """The photo as uint8 (H, W, 3), sRGB, upright, converted according to the settings.

    Raises:
        ImageRejected: the reasons of `load_image` and of `upright_photo`.
    """
    return upright_photo(load_image(data, images), images)


def decode_image(data: bytes, *, most_pixels: int = MOST_PIXELS) -> DecodedImage:
    """Pixels and transparency of an image file, whatever it is but an animation.

    Raises:
        ImageRejected: the reasons of `load_image`.
    """
    image = load_image(data, _DEFAULTS, most_pixels=most_pixels)
    with _decoder_errors():
        rgb, lying = upright_canvas(image, 3)
        alpha = None
        for rows, colors, opacity in strips(image.pixels):
            lying[rows] = colors
            if opacity is not None and opacity.min() < 255:
                if alpha is None:
                    alpha, lying_alpha = upright_canvas(image, 1)
                    alpha[:] = 255
                lying_alpha[rows, :, 0] = opacity
    return DecodedImage(rgb, None if alpha is None else alpha[..., 0], image)


def load_image(
    data: bytes, images: ImageSettings, *, most_pixels: int = MOST_PIXELS
) -> LoadedImage:
    """Decodes a file; afterwards its bytes are needed no longer.

    Raises:
        ImageRejected: "empty file", "not an image", "truncated", "corrupt", "animated", "gray",
            "cmyk", "16 bit", "too large" (a decompression bomb), "damaged", "unsupported pixel
            format".
    """
    with _decoder_errors(), _Head(data) as stream:
        image = _open(stream, most_pixels)
        header = header_of(image, data)
        _check_kind(header, images)
        turn = orientation(image)
        if image.format == "WEBP" and not header.animated:
            return LoadedImage(_still_webp(data, image.info), turn, header)
        with damage.tiff_messages() as messages:
            image.load()
        if images.damaged == "reject":
            if messages:
                raise damage.Damaged
            if image.format in ("JPEG", "MPO"):
                damage.check_jpeg(data, len(image.getbands()))
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                damage.check_tiff(data, image.tag_v2)
    return LoadedImage(image, turn, header)


def upright_photo(image: LoadedImage, images: ImageSettings) -> np.ndarray:
    """uint8 (H, W, 3), sRGB. An embedded color profile is converted; one that is broken or does
    not fit the pixels is ignored, as browsers do.

    Raises:
        ImageRejected: "transparent" where the settings reject it, "unsupported pixel format".
    """
    with _decoder_errors():
        rgb, lying = upright_canvas(image, 3)
        for rows, colors, alpha in strips(image.pixels):
            if alpha is not None and alpha.min() < 255:
                if images.transparent == "reject":
                    raise ImageRejected("transparent")
                colors = composite(colors, alpha, _BACKGROUND[images.transparent])
            lying[rows] = colors
    return rgb


def check_pixels(pixels: np.ndarray, filters: FilterSettings) -> None:
    """Applies the filters that need the pixels, uint8 (H, W, 3); ImageRejected("blurred")."""
    if filters.min_sharpness is not None and sharpness(pixels) < filters.min_sharpness:
        raise ImageRejected("blurred")


def _still_webp(data: bytes, info: dict[str | tuple[int, int], Any]) -> Image.Image:
    """The pixels that Pillow would give, for half of the memory: it decodes any as an animation."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("not a WebP picture")
    height, width, channels = pixels.shape
    mode, order = ("RGBA", "BGRA") if channels == 4 else ("RGB", "BGR")
    image = Image.frombytes(mode, (width, height), pixels, "raw", order)
    image.info = {name: info.get(name) for name in ("icc_profile", "exif", "xmp")}
    return image


def _header(head: bytes, complete: bool) -> ImageHeader:
    if not complete and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        header = webp_header(head)
        if header is None:
            raise HeaderIncomplete
        _check_size(header.width, header.height)
        return header
    stream = _Head(head)
    try:
        with _decoder_errors():
            image = _open(stream)
            sufficient = not stream.cut
            header = header_of(image, head)
    except ImageRejected as error:
        if complete or not stream.cut or error.reason in _BY_FIRST_BYTES:
            raise
        raise HeaderIncomplete from error
    # A second frame may be beyond the head: `decode_photo` finds that.
    if not complete and stream.cut and not (sufficient and image.format == "GIF"):
        raise HeaderIncomplete
    return header


def _open(stream: _Head, most_pixels: int = MOST_PIXELS) -> ImageFile.ImageFile:
    start = io.BytesIO.read(stream, _MAGIC)  # `getbuffer` would copy the whole file
    stream.seek(0)
    if not start:
        raise ImageRejected("empty file")
    Image.init()
    accepting = (Image.OPEN[name][1] for name in _FORMATS)
    if not any(accept is not None and accept(start) is True for accept in accepting):
        raise ImageRejected("heic without pillow-heif" if is_heic(start) else "not an image")
    try:
        with _allowed(most_pixels):
            image = Image.open(stream, formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        if not stream.cut and start[:2] in _TIFF and tiff_tags(stream.getvalue()):
            raise UnsupportedPixels from error
        raise ImageRejected("truncated" if stream.cut else "corrupt") from error
    _check_size(*image.size, most_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image.tag_v2)
    return image


def _check_size(width: int, height: int, most_pixels: int = MOST_PIXELS) -> None:
    if width < 1 or height < 1:
        raise ImageRejected("corrupt")
    if width * height > most_pixels:
        raise TooManyPixels


@contextmanager
def _allowed(most_pixels: int) -> Iterator[None]:
    """Pillow refuses pictures of twice its limit, which is one for the whole process."""
    usual = Image.MAX_IMAGE_PIXELS
    if most_pixels <= MOST_PIXELS:
        yield
        return
    Image.MAX_IMAGE_PIXELS = most_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _check_kind(header: ImageHeader, images: ImageSettings) -> None:
    if header.animated and images.animated == "reject":
        raise ImageRejected("animated")
    if header.gray and images.gray == "reject":
        raise ImageRejected("gray")
    if header.cmyk and images.cmyk == "reject":
        raise ImageRejected("cmyk")
    if header.sixteen_bit and images.sixteen_bit == "reject":
        raise ImageRejected("16 bit")


def _check_filters(header: ImageHeader, filters: FilterSettings) -> None:
    short, long = sorted((header.width, header.height))
    if short < filters.min_side:
        raise ImageRejected("below min_side")
    if filters.max_aspect_ratio is not None and long > filters.max_aspect_ratio * short:
        raise ImageRejected("aspect ratio")
    if short * long > filters.max_megapixels * 1e6:
        raise ImageRejected("too large")
    quality, least = header.jpeg_quality, filters.min_jpeg_quality
    if least is not None and quality is not None and quality < least:
        raise ImageRejected("jpeg quality")


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Pillow's decoders raise almost anything on broken bytes: each means a bad image."""
    try:
        yield
    except ImageRejected:
        raise
    except damage.Damaged as error:
        raise ImageRejected("damaged") from error
    except UnsupportedPixels as error:
        raise ImageRejected("unsupported pixel format") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels from error
    except DECODER_ERRORS as error:
        message = str(error).lower()
        if "decompressed data too large" in message:  # a bomb in the text or profile of a PNG
            raise ImageRejected("too large") from error
        raise ImageRejected("truncated" if "truncated" in message else "corrupt") from error


def upright_canvas(
    image: LoadedImage, channels: int, dtype: type[np.generic] = np.uint8
) -> tuple[np.ndarray, np.ndarray]:
    """An upright picture to fill (H, W, channels), and the same as it lies in its file: EXIF's
    orientation (tag 274) tells which sides row 0 and column 0 are."""
    turn, (width, height) = image.orientation, image.pixels.size
    upright = np.empty((width, height, channels) if turn >= 5 else (height, width, channels), dtype)
    lying = upright
    if turn in (3, 4, 7, 8):
        lying = lying[::-1]
    if turn in (2, 3, 6, 7):
        lying = lying[:, ::-1]
    if turn >= 5:
        lying = lying.swapaxes(0, 1)
    return upright, lying

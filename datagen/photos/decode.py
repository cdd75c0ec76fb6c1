"""Turns the bytes of an image file into upright 8-bit sRGB pixels, or a short reason why not.

`read_header` decides what it can without decoding any pixel.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

from datagen.errors import FlowmapsrError
from datagen.photos.color import UnsupportedPixels, alpha_of, composite, to_srgb
from datagen.photos.headers import (
    DECODER_ERRORS,
    ImageHeader,
    check_tiff,
    header_of,
    orientation,
    tiff_tags,
    webp_header,
)
from datagen.photos.quality import sharpness
from datagen.settings import FilterSettings, ImageSettings

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff",
     ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
)  # fmt: skip
FILTERED = frozenset(
    {"below min_side", "aspect ratio", "jpeg quality", "blurred", "gray", "cmyk", "16 bit"}
)
"""Reasons of sound photos, which a recipe that sets no `filters` and no `images` would keep."""
# Decoders allowed for untrusted input: some of Pillow's others start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
_MAGIC = 16  # bytes by which Pillow recognizes a format
_TIFF = (b"II", b"MM")
_MAX_PIXELS = 178_956_970  # Pillow's limit for decompression bombs; 100 megapixels are real
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


class HeaderIncomplete(Exception):
    """More header bytes are needed."""


@dataclass(frozen=True)
class DecodedImage:
    """Upright pixels: `rgb` uint8 (H, W, 3) in sRGB, `alpha` uint8 (H, W), None if opaque."""

    rgb: np.ndarray
    alpha: np.ndarray | None


class _Head(io.BytesIO):
    """Remembers whether anything beyond its end was read."""

    cut = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.cut = self.cut or size is None or size < 0 or len(data) < size
        return data


def read_header(
    head: bytes, *, complete: bool, images: ImageSettings, filters: FilterSettings
) -> tuple[int, int]:
    """(width, height) as displayed, from the first bytes of a file; decodes no pixels.

    64 KB are enough for most files; `complete` if `head` is the whole file. `decode_photo` may
    still reject it.

    Raises:
        HeaderIncomplete: more bytes are needed.
        ImageRejected: what the header decides: "empty file", "not an image", "truncated",
            "corrupt", "too large", "animated", "gray", "cmyk", "16 bit", "too small",
            "aspect ratio", "jpeg quality".
    """
    if len(head) < _MAGIC and not complete:
        raise HeaderIncomplete
    header = _header(head, complete)
    _check_kind(header, images)
    _check_filters(header, filters)
    return header.width, header.height


def decode_photo(data: bytes, images: ImageSettings) -> np.ndarray:
    """The photo as uint8 (H, W, 3), sRGB, upright, converted according to the settings.

    Raises:
        ImageRejected: the reasons of `decode_image`, and "transparent", "gray", "cmyk", "16 bit"
            where the settings reject these.
    """
    decoded = decode_image(data, images)
    if decoded.alpha is None:
        return decoded.rgb
    if images.transparent == "reject":
        raise ImageRejected("transparent")
    return composite(decoded.rgb, decoded.alpha, _BACKGROUND[images.transparent])


def decode_image(data: bytes, images: ImageSettings = _DEFAULTS) -> DecodedImage:
    """Pixels and transparency of an image file; without settings any kind but an animation.

    An embedded color profile is converted to sRGB; one that is broken or does not fit the pixels
    is ignored, as browsers do.

    Raises:
        ImageRejected: "empty file", "not an image", "truncated", "corrupt", "animated",
            "too large" (a decompression bomb), "damaged", "unsupported pixel format".
    """
    with _decoder_errors():
        image = _open(_Head(data))
        _check_kind(header_of(image, data), images)
        turn = orientation(image)
        image.load()
        if images.damaged == "reject" and image.format in ("JPEG", "MPO"):
            _check_jpeg(data, image.mode)
        alpha = alpha_of(image)
        rgb = to_srgb(image)
    if alpha is not None:
        alpha = None if int(alpha.min()) == 255 else _upright(alpha, turn)
    return DecodedImage(_upright(rgb, turn), alpha)


def check_pixels(pixels: np.ndarray, filters: FilterSettings) -> None:
    """Applies the filters that need the pixels, uint8 (H, W, 3); ImageRejected("blurred")."""
    if filters.min_sharpness is not None and sharpness(pixels) < filters.min_sharpness:
        raise ImageRejected("blurred")


def _check_jpeg(data: bytes, mode: str) -> None:
    """Refuses a file that makes libjpeg warn, which Pillow hides; ImageRejected("damaged").

    It is decoded at an eighth of its size, which takes half the time of decoding it whole.
    """
    colors = "CMYK" if mode == "CMYK" else "GRAY"
    smallest = {"min_height": 1, "min_width": 1, "min_factor": 8}
    try:
        simplejpeg.decode_jpeg(data, colors, strict=True, **smallest)
    except ValueError as error:
        raise ImageRejected("damaged") from error


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
        if complete or not stream.cut or error.reason in ("not an image", "too large"):
            raise
        raise HeaderIncomplete from error
    # A second frame may be beyond the head: `decode_photo` finds that.
    if not complete and stream.cut and not (sufficient and image.format == "GIF"):
        raise HeaderIncomplete
    return header


def _open(stream: _Head) -> ImageFile.ImageFile:
    start = stream.getbuffer()[:_MAGIC].tobytes()
    if not start:
        raise ImageRejected("empty file")
    Image.init()
    accepting = (Image.OPEN[name][1] for name in _FORMATS)
    if not any(accept is not None and accept(start) is True for accept in accepting):
        raise ImageRejected("not an image")
    try:
        image = Image.open(stream, formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        if not stream.cut and start[:2] in _TIFF and tiff_tags(stream.getvalue()):
            raise UnsupportedPixels from error
        raise ImageRejected("truncated" if stream.cut else "corrupt") from error
    _check_size(*image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image.tag_v2)
    return image


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageRejected("corrupt")
    if width * height > _MAX_PIXELS:
        raise ImageRejected("too large")


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
    except UnsupportedPixels as error:
        raise ImageRejected("unsupported pixel format") from error
    except Image.DecompressionBombError as error:
        raise ImageRejected("too large") from error
    except DECODER_ERRORS as error:
        message = str(error).lower()
        if "decompressed data too large" in message:  # a bomb in the text or profile of a PNG
            raise ImageRejected("too large") from error
        raise ImageRejected("truncated" if "truncated" in message else "corrupt") from error


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undoes the EXIF orientation (tag 274: which sides row 0 and column 0 are)."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)

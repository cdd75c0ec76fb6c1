"""Reads from the header of an image file what can be known before its pixels are decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFile, TiffImagePlugin

from datagen.photos.color import UnsupportedPixels
from datagen.photos.decoding_memory import AVIF_DEEP, avif_flags, decoding_bytes, webp_bytes
from datagen.photos.quality import jpeg_quality

DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
                  OverflowError, MemoryError, AttributeError, RuntimeError, struct.error,
                  zlib.error)  # fmt: skip
"""What Pillow raises on broken bytes."""

_ORIENTATION_TAG = 0x0112
_BITS_TAG, _COMPRESSION_TAG, _SAMPLES_TAG, _PLANES_TAG = 258, 259, 277, 284
_SAMPLE_FORMAT_TAG = 339
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "F"})


@dataclass(frozen=True)
class ImageHeader:
    """Properties in a file's header; `width` and `height` as displayed, pixels."""

    width: int
    height: int
    animated: bool = False
    """More than one frame or page; a phone's MPO or HEIC file counts as its main picture."""
    gray: bool = False
    cmyk: bool = False
    sixteen_bit: bool = False
    jpeg_quality: int | None = None
    """Of JPEG files only, 1..100."""
    decoding_bytes: int = 0
    """Most memory that decoding takes beside the file."""


def header_of(image: ImageFile.ImageFile, head: bytes) -> ImageHeader:
    """The header of an image that Pillow has opened and not loaded; `head` are its first bytes."""
    width, height = image.size
    if orientation(image) >= 5:
        width, height = height, width
    return ImageHeader(
        width=width,
        height=height,
        animated=image.format not in ("MPO", "HEIF") and bool(getattr(image, "is_animated", False)),
        gray=image.mode in _GRAY_MODES or image.mode.startswith("I"),
        cmyk=image.mode == "CMYK",
        sixteen_bit=_sixteen_bit(image, head),
        jpeg_quality=_jpeg_quality(image),
        decoding_bytes=decoding_bytes(image, head),
    )


def orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation 1..8 still to be undone; anything unreadable is upright.

    Pillow undoes that of TIFF files itself. In a PNG only EXIF data before the pixels counts:
    `PngImageFile.getexif` would decode the whole picture to look after them.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except DECODER_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def check_tiff(tags: Mapping[int, Any]) -> None:
    """Refuses values that Pillow would show in wrong colors, without a word, or cannot show.

    Raises:
        UnsupportedPixels: they are not unsigned, not all of 1, 2, 4, 8 or 16 bits, or in separate
            planes and either gray with alpha, or colors of 16 bits without compression.
    """
    bits, kinds = set(tags.get(_BITS_TAG, (1,))), set(tags.get(_SAMPLE_FORMAT_TAG, (1,)))
    separate, raw = tags.get(_PLANES_TAG, 1) == 2, tags.get(_COMPRESSION_TAG, 1) == 1
    if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16} or not kinds <= {1, 4}:
        raise UnsupportedPixels
    if separate and (tags.get(_SAMPLES_TAG, 1) == 2 or (raw and bits == {16})):
        raise UnsupportedPixels


def tiff_tags(data: bytes) -> Mapping[int, Any]:
    """The tags of a TIFF file's first page; empty where they cannot be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        return dict(tags)
    except DECODER_ERRORS:
        return {}


def webp_header(head: bytes) -> ImageHeader | None:
    """The header of a WebP file from its first bytes; None where these are not enough.

    Pillow needs the whole file to open one. The EXIF orientation is at the end of the file, so the
    first bytes are not enough if there is EXIF (or XMP). Source: RFC 9649, sections 2.5 to 2.7.
    """
    if len(head) < 30:
        return None
    match head[12:16]:
        case b"VP8X":
            flags = head[20]
            width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
            if flags & 0b1100:
                return None
            return _webp(width, height, animated=bool(flags & 0b10))
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack("<HH", head[26:30])
            return _webp(width & 0x3FFF, height & 0x3FFF)
        case b"VP8L" if head[20] == 0x2F:
            bits = int.from_bytes(head[21:25], "little")
            return _webp(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    return None


def _webp(width: int, height: int, *, animated: bool = False) -> ImageHeader:
    memory = webp_bytes(width, height)
    return ImageHeader(width=width, height=height, animated=animated, decoding_bytes=memory)


def _sixteen_bit(image: ImageFile.ImageFile, head: bytes) -> bool:
    """Pillow reduces 16-bit color to 8 bits without a trace in the mode."""
    if image.mode.startswith("I"):
        return True
    match image.format:
        case "HEIF":
            return image.info.get("bit_depth", 8) > 8
        case "AVIF":
            return bool(avif_flags(head) & AVIF_DEEP)
        case "PNG":
            return head[24] == 16  # IHDR: bit depth
        case "TIFF":
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            return max(image.tag_v2.get(_BITS_TAG, (1,))) == 16
        case "PPM":
            arguments = image.tile[0].args
            return isinstance(arguments, tuple) and arguments[-1] > 255
    return False


def _jpeg_quality(image: ImageFile.ImageFile) -> int | None:
    tables = getattr(image, "quantization", None)
    components = getattr(image, "layer", None)
    if not tables or not components:
        return None
    luma_table = components[0][3]
    return jpeg_quality(tables[luma_table]) if luma_table in tables else None

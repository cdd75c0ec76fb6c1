"""The memory that decoding a photo takes: what a worker reserves, and what its header tells.

`tests/datagen/photos/test_decoding_memory.py` compares it with what decoding uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import ImageFile, TiffImagePlugin

RESERVED_BYTES = 10
"""For each pixel of the largest photo, its file included. Of the few kinds that take more, such as
16-bit TIFF with transparency, the very largest photos are left out as too large."""
CONVERTING_BYTES = 7
"""For each pixel while a decoded picture becomes sRGB; its file is needed no longer then."""
_STILL_WEBP = 8
_TEXT_OR_DEEP_PNM = 10
_ROWS, _TILE_WIDTH, _TILE_HEIGHT, _BITS, _COMPRESSION = 278, 322, 323, 258, 259
_ORIENTATION = 274
AVIF_DEEP = 0b0100_0000
"""Of `avif_flags`: 10 or 12 bits."""
_AVIF_TWELVE = 0b0010_0000
_AVIF_GRAY, _AVIF_HALF_WIDTH, _AVIF_HALF_HEIGHT = 0b1_0000, 0b1000, 0b100


def decoding_bytes(image: ImageFile.ImageFile, head: bytes) -> int:
    """Most memory of decoding a picture that Pillow has opened, without its file, bytes.

    It is Pillow's picture and what the decoder of its format holds beside it.
    """
    pixels = image.width * image.height
    # Pillow keeps gray and palettes in one byte, 16-bit gray in two, all else in four.
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;") else 4
    bands = len(image.getbands())
    match image.format:
        case "JPEG" | "MPO" if image.info.get("progressive"):
            # All coefficients, 16 bits each.
            parts = [across * down for _, across, down, _ in getattr(image, "layer", ())]
            return int(pixels * (stored + 2 * sum(parts) / max(parts, default=1)))
        case "WEBP":
            return webp_bytes(image.width, image.height)
        case "AVIF":
            return int(pixels * (_avif_planes(head, alpha=bands == 4) + bands + 4))
        case "HEIF":
            deep = image.info.get("bit_depth", 8) > 8
            halved = image.info.get("chroma", 420) == 420  # as phones do
            return pixels * (9 if halved else 22 if deep else 11)
        case "PPM" if image.tile[0].codec_name != "raw":
            return pixels * _TEXT_OR_DEEP_PNM
        case "TIFF":
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            turned = stored if image.tag_v2.get(_ORIENTATION, 1) != 1 else 0
            return pixels * (stored + turned) + _tiff_part(image)
    return pixels * stored


def webp_bytes(width: int, height: int) -> int:
    """`decoding_bytes` of a WebP file with one frame."""
    return width * height * _STILL_WEBP


def avif_flags(head: bytes) -> int:
    """What the `av1C` box says of depth and colors; source: AV1-ISOBMFF, section 2.3.3."""
    at = head.find(b"av1C")
    return head[at + 6] if 0 <= at < len(head) - 6 else 0


def avif_bits(head: bytes) -> int:
    """Of a channel: 8, 10 or 12."""
    flags = avif_flags(head)
    if not flags & AVIF_DEEP:
        return 8
    return 12 if flags & _AVIF_TWELVE else 10


def _avif_planes(head: bytes, *, alpha: bool) -> float:
    """Bytes a pixel of the decoded planes."""
    flags = avif_flags(head)
    halved = bool(flags & _AVIF_HALF_WIDTH) + bool(flags & _AVIF_HALF_HEIGHT)
    color = 0 if flags & _AVIF_GRAY else 2 / 2**halved
    return (1 + color + alpha) * (2 if flags & AVIF_DEEP else 1)


def _tiff_part(image: TiffImagePlugin.TiffImageFile) -> int:
    """Bytes of the strip or tile that is decompressed at a time."""
    tags = image.tag_v2
    if tags.get(_COMPRESSION, 1) == 1:
        return 0
    bits: Sequence[Any] = tags.get(_BITS, (1,))
    width = tags.get(_TILE_WIDTH, image.width)
    height = min(tags.get(_TILE_HEIGHT, tags.get(_ROWS, image.height)), image.height)
    return width * height * max(4, sum(bits) // 8)

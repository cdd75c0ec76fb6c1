"""Turns the bytes of an image file into upright 8-bit sRGB pixels, or says in two words why not.

Knows no files, no datasets and no models.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageFile

from datagen.errors import FlowmapsrError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"}
)
"""Lower-case file suffixes that are taken for images."""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Decoders that may run on a stranger's bytes: some of Pillow's others start programs."""
_ORIENTATION_TAG = 0x0112
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
                   OverflowError, MemoryError, struct.error, zlib.error)  # fmt: skip
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})

# Pillow warns from 89 and refuses from 179 megapixels; photos of 100 megapixels are real.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageRejected(FlowmapsrError):
    """An image that cannot be used; `reason` is short, lower case and stable, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class DecodedImage:
    """Upright pixels: `rgb` uint8 (H, W, 3) in sRGB, `alpha` uint8 (H, W), None if opaque."""

    rgb: np.ndarray
    alpha: np.ndarray | None


def decode_photo(data: bytes) -> np.ndarray:
    """The photo as uint8 (H, W, 3), sRGB, upright.

    Grey, palette, CMYK, 16-bit and opaque-alpha images are converted. Raises ImageRejected for what
    is no photo: "transparent", and the reasons of `decode_image`.
    """
    decoded = decode_image(data)
    if decoded.alpha is not None:
        raise ImageRejected("transparent")
    return decoded.rgb


def decode_image(data: bytes) -> DecodedImage:
    """Pixels and transparency of an image file.

    An embedded colour profile is converted to sRGB; one that is broken or does not fit the pixels
    is ignored, as browsers do. Raises ImageRejected: "empty file", "not an image", "truncated",
    "corrupt", "animated", "too large" (a decompression bomb), "unsupported pixel format".
    """
    with _decoder_errors():
        image = _open(data)
        orientation = _orientation(image)
        image.load()
        alpha = _alpha(image)
        rgb = _to_srgb(image)
    upright = np.ascontiguousarray(_upright(rgb, orientation))
    if alpha is None or int(alpha.min()) == 255:
        return DecodedImage(upright, None)
    return DecodedImage(upright, np.ascontiguousarray(_upright(alpha, orientation)))


def read_header(data: bytes) -> tuple[int, int]:
    """(width, height) as displayed, from the header alone; ImageRejected as `decode_image`."""
    with _decoder_errors():
        image = _open(data)
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Pillow's decoders raise almost anything on broken bytes: every one means a bad image."""
    try:
        yield
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected("too large") from error
    except _DECODER_ERRORS as error:
        raise ImageRejected(
            "truncated" if "truncated" in str(error).lower() else "corrupt"
        ) from error


def _open(data: bytes) -> ImageFile.ImageFile:
    if not data:
        raise ImageRejected("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ImageRejected("not an image") from error
    # A phone's MPO file is a JPEG with further views behind it: the first is the photo.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageRejected("animated")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; anything unreadable is upright, as viewers take it."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the EXIF orientation (tag 274: which sides row 0 and column 0 are)."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels.swapaxes(0, 1)[:, ::-1]
        case 7:
            return pixels.swapaxes(0, 1)[::-1, ::-1]
        case 8:
            return pixels.swapaxes(0, 1)[::-1]
    return pixels


def _alpha(image: Image.Image) -> np.ndarray | None:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return None
    return np.asarray(image.convert("RGBA"))[..., 3]


def _to_srgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ImageRejected("unsupported pixel format")
    if image.mode in _ALPHA_MODES or image.mode in ("P", "1", "RGBX"):
        image_in_colour = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
        image_in_colour.info = image.info
        image = image_in_colour
    profile = image.info.get("icc_profile")
    converted = _through_profile(image, profile) if profile else None
    return np.asarray(converted or image.convert("RGB"))


def _from_16_bit(image: Image.Image) -> np.ndarray:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageRejected("unsupported pixel format")
    grey = ((levels + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB, or None where there is nothing to convert."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

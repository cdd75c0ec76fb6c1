"""Converts a loaded picture of any mode to 8-bit sRGB with its embedded color profile."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_MODES = _ALPHA_MODES | {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}


_STRIP_PIXELS = 1 << 18


class UnsupportedPixels(Exception):
    """A picture whose values are not colors of at most 16 bits."""


def strips(image: Image.Image) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Some rows after the others: which, their colors uint8 (h, W, 3) in sRGB, and their alpha
    uint8 (h, W) where the picture can have one, 255 is opaque.

    So that a conversion takes no memory of the picture's size. A profile that is broken or does not
    fit the pixels is ignored. 16-bit levels v become (v + 128) // 257. Raises UnsupportedPixels.
    """
    height = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        strip = image.crop((0, rows.start, image.width, rows.stop))
        yield rows, _to_srgb(strip), _alpha_of(strip)


def composite(rgb: np.ndarray, alpha: np.ndarray, background: int) -> np.ndarray:
    """Lays uint8 (H, W, 3) over a gray level, by its alpha (H, W); rounded to the nearest."""
    weight = alpha[..., None].astype(np.uint16)
    mixed = rgb * weight + np.uint16(background) * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8)


def _to_srgb(image: Image.Image) -> np.ndarray:
    profile = image.info.get("icc_profile")
    image = _plain(image)
    converted = _through_profile(image, profile) if profile else None
    if converted is not None:
        return converted
    # convert() alone would copy a picture that is RGB already.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _alpha_of(image: Image.Image) -> np.ndarray | None:
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        return None if clear is None else np.where(_levels(image) == clear, 0, 255).astype(np.uint8)
    if image.mode not in _ALPHA_MODES and clear is None:
        return None
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _plain(image: Image.Image) -> Image.Image:
    """The picture in a mode that color profiles exist for: L, RGB or CMYK."""
    if image.mode.startswith("I"):
        levels = _levels(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UnsupportedPixels
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode not in _MODES:
        raise UnsupportedPixels
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int64)


def _through_profile(image: Image.Image, profile: bytes) -> np.ndarray | None:
    """The image in sRGB, or None where there is nothing to convert."""
    try:
        if image.mode == "L":
            table = _gray_table(profile)
            return None if table is None else table[np.asarray(image)]
        transform = _transform(profile, image.mode)
        return None if transform is None else np.asarray(ImageCms.applyTransform(image, transform))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=8)
def _gray_table(profile: bytes) -> np.ndarray | None:
    """uint8 (256, 3), each gray level in sRGB; the usual transform is off by 10 in the dark."""
    transform = _transform(profile, "L", ImageCms.Flags.NOOPTIMIZE)
    if transform is None:
        return None
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return np.asarray(ImageCms.applyTransform(ramp, transform))[0]


@lru_cache(maxsize=8)
def _transform(
    profile: bytes, mode: str, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it is sRGB. All photos of a camera share one."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(source).lower():
        return None
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.buildTransform(source, srgb, mode, "RGB", flags=flags)

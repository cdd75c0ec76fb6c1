"""Reads a picture from a file of any format, with what that says beside the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datagen.photos.decode import MOST_PIXELS, LoadedImage, decode_image, upright_canvas
from training.inference.pictures.deep import deep_levels
from training.inference.pictures.metadata import Metadata, read_metadata
from training.inference.pictures.profile import WideProfile, converted, srgb


@dataclass(frozen=True)
class Picture:
    """Upright pixels in sRGB, of 8 or 16 bits, and what its file says beside them."""

    rgb: np.ndarray
    """uint8 or uint16 (H, W, 3)."""
    alpha: np.ndarray | None
    """(H, W), None if opaque."""
    gray: bool
    """Whether all three channels are equal."""
    metadata: Metadata
    notes: tuple[str, ...] = ()
    """What was not kept, for the user."""


def read_picture(data: bytes, *, deep: bool = True, most_pixels: int = MOST_PIXELS) -> Picture:
    """An image file of any format; more than 8 bits are kept of PNG, TIFF, AVIF and HEIC where
    `deep` asks for them.

    Args:
        most_pixels: of a picture that is no file made to fill memory.

    Raises:
        ImageRejected: the reasons of `load_image`.
    """
    decoded = decode_image(data, most_pixels=most_pixels)
    header, notes = decoded.loaded.header, []
    metadata, left_out = read_metadata(decoded.loaded.pixels, cmyk=header.cmyk)
    notes += left_out
    rgb, alpha = decoded.rgb, decoded.alpha
    if deep and header.sixteen_bit:
        levels = _sixteen_bits(data, decoded.loaded, metadata.profile)
        if isinstance(levels, str):
            notes.append(f"only 8 of its bits are read: {levels}")
        else:
            rgb, alpha = levels[..., :3], _deep_alpha(levels, alpha)
    gray = header.gray or bool((rgb == rgb[..., :1]).all())
    return Picture(rgb, alpha, gray, metadata, tuple(notes))


def _sixteen_bits(data: bytes, loaded: LoadedImage, profile: bytes | None) -> np.ndarray | str:
    """The upright picture (H, W, 3 or 4) in sRGB, uint16; or why there are only 8 bits."""
    if loaded.header.cmyk:
        return "more are kept of RGB and gray"
    lying = deep_levels(data, loaded.pixels)
    if isinstance(lying, str):
        return lying
    upright, canvas = upright_canvas(loaded, lying.shape[2], np.uint16)
    canvas[:] = lying
    if profile is not None:
        source = WideProfile.of(profile)
        if source is None:
            return "its color profile is a table"
        upright[..., :3] = converted(upright[..., :3], source, srgb())
    return upright


def _deep_alpha(deep: np.ndarray, alpha: np.ndarray | None) -> np.ndarray | None:
    if deep.shape[2] == 4:
        return deep[..., 3] if deep[..., 3].min() < 65535 else None
    return None if alpha is None else alpha.astype(np.uint16) * np.uint16(257)

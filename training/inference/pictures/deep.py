"""Pixels of more than 8 bits, which Pillow does not read of colors: other decoders read them again,
and what both agree on is taken."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from datagen.photos.decoding_memory import avif_bits
from datagen.photos.heic import heic_levels

_APART = {"AVIF": 4, "HEIF": 4}
"""Levels of 8 bits that decoders may differ by: they round chroma at other places, and 3 were
measured at most."""


def deep_levels(data: bytes, image: Image.Image) -> np.ndarray | str:
    """RGB as it lies in the file, with alpha where it has that, uint16 (H, W, 3 or 4) up to 65535;
    or why there are only 8 bits.

    Args:
        image: what Pillow made of the file.
    """
    match image.format:
        case "PNG" | "TIFF":
            levels = _by_opencv(data, bits=16)
        case "AVIF":
            levels = _by_opencv(data, bits=avif_bits(data))
        case "HEIF":
            levels = heic_levels(data)
        case _:
            return "16 are kept of PNG and TIFF in RGB and gray, 10 and 12 of AVIF and HEIC"
    if levels is None or not _agree(levels, image):
        return "two decoders differ on them"
    return levels


def _by_opencv(data: bytes, *, bits: int) -> np.ndarray | None:
    levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16:
        return None
    if levels.ndim == 2:
        levels = cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB)
    else:
        order = cv2.COLOR_BGRA2RGBA if levels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        levels = cv2.cvtColor(levels, order)
    if bits == 16:
        return levels
    every = np.arange(1 << 16) * (65535 / ((1 << bits) - 1))
    return np.rint(every).clip(max=65535).astype(np.uint16)[levels]


def _agree(levels: np.ndarray, image: Image.Image) -> bool:
    if levels.shape[1::-1] != image.size:
        return False
    if image.mode.startswith("I"):
        return np.array_equal(levels[..., 0], np.asarray(image))
    eight = np.asarray(image.convert("RGBA" if levels.shape[2] == 4 else "RGB"))
    apart = np.abs(levels // 257 - eight.astype(np.int32)).max()
    return bool(apart <= _APART.get(image.format or "", 1))

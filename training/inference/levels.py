"""Pixels as levels of 8 or 16 bits: their range, rounding to them, and plain enlarging."""

from __future__ import annotations

import cv2
import numpy as np


def top_level(image: np.ndarray) -> int:
    return int(np.iinfo(image.dtype).max)


def to_levels(picture: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float in [0, 1], and somewhat beyond, to the nearest levels of uint8 or uint16."""
    top = np.iinfo(dtype).max
    levels = top * picture
    np.rint(levels, out=levels)
    return np.clip(levels, 0, top, out=levels).astype(dtype)


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or uint16 (h, w[, 3]) at (width, height): the baseline, and most models' input."""
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)

"""Pixels as levels of 8 or 16 bits: their range, rounding to them, and plain enlarging, before
which those that are not seen get colors."""

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


def enlarged_size(image: np.ndarray, scale: float) -> tuple[int, int]:
    """(width, height) of the image enlarged, each 1 or more."""
    height, width = image.shape[:2]
    return max(1, round(width * scale)), max(1, round(height * scale))


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or uint16 (h, w[, 3]) at (width, height): the baseline, and most models' input."""
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def colors_everywhere(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The picture with colors where nothing is seen of it, grown from what is seen: enlarging mixes
    neighbors, and whatever a file has there would show as a halo."""
    seen = alpha > 0
    if seen.all():
        return rgb
    weight = seen.astype(np.float32)
    grown = _grown(rgb * weight[..., None], weight)
    return np.where(seen[..., None], rgb, grown.round().astype(rgb.dtype))


def _grown(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colors (H, W, 3), times their weights (H, W), filled from pictures of half the size."""
    height, width = weight.shape
    if max(height, width) == 1:
        return weighted / np.maximum(weight, 1e-6)[..., None]
    half = ((width + 1) // 2, (height + 1) // 2)
    small = [cv2.resize(one, half, interpolation=cv2.INTER_AREA) for one in (weighted, weight)]
    below = cv2.resize(_grown(*small), (width, height), interpolation=cv2.INTER_LINEAR)
    return weighted + (1 - weight)[..., None] * below

"""Pixels as levels of 8 or 16 bits: their range, rounding to them, and plain enlarging."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from datagen.errors import FlowmapsrError


def top_level(image: np.ndarray) -> int:
    return int(np.iinfo(image.dtype).max)


def to_levels(picture: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float in [0, 1], and somewhat beyond, to the nearest levels of uint8 or uint16."""
    top = np.iinfo(dtype).max
    levels = top * picture
    np.rint(levels, out=levels)
    return np.clip(levels, 0, top, out=levels).astype(dtype)


def is_finite(x: Tensor) -> bool:
    """Whether all values are; a sum says so in a tenth of the time of looking at each."""
    return bool(x.sum().isfinite())


def shares_of(restored: Tensor) -> np.ndarray:
    """What a restorer made, (3, H, W) in [-1, 1] -> float32 (H, W, 3) in [0, 1].

    Raises:
        FlowmapsrError: values that are not finite.
    """
    restored = restored.float()
    if not is_finite(restored):
        raise FlowmapsrError(
            "the model gives values that are not finite: use --precision fp32, or another "
            "model where that is used already"
        )
    shares = restored.add(1).div_(2).clamp_(0, 1)
    return shares.permute(1, 2, 0).contiguous().cpu().numpy()


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or uint16 (h, w[, 3]) at (width, height): the baseline, and most models' input."""
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)

"""The luma Y that metrics of the field are measured on."""

from __future__ import annotations

import numpy as np

from training.settings.evaluation import Luma

_WEIGHTS = {
    "ycbcr": (np.array([65.481, 128.553, 24.966]) / 255, 16.0),
    "yiq": (np.array([0.299, 0.587, 0.114]), 0.0),
}


def luma(picture: np.ndarray, kind: Luma) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> float64 (H, W), in levels of 8 bits, not rounded."""
    weights, offset = _WEIGHTS[kind]
    y: np.ndarray = picture @ weights + offset
    return y

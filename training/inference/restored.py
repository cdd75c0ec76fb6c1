"""What a network made of a picture: whether it is finite, and as shares of full levels."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from datagen.errors import FlowmapsrError


def is_finite(x: Tensor) -> bool:
    """Whether all values are; a sum says so in a tenth of the time of looking at each."""
    return bool(x.sum().isfinite())


def shares_of(restored: Tensor) -> np.ndarray:
    """What a restorer made, (3, H, W) in [-1, 1] -> float32 (H, W, 3) in [0, 1].

    Raises:
        FlowmapsrError: values that are not finite.
    """
    if not is_finite(restored):
        raise FlowmapsrError(
            "the model gives values that are not finite: use --precision fp32, or another "
            "model where that is used already"
        )
    shares = restored.float().add(1).div_(2).clamp_(0, 1)
    colors_last = shares.permute(1, 2, 0)
    if shares.is_cpu and not colors_last.is_contiguous():
        # A third of the time of PyTorch's own copy.
        return cv2.merge([plane.numpy() for plane in shares])
    return colors_last.contiguous().cpu().numpy()

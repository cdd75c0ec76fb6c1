"""Gives a restored picture the colors of its LQ: networks change them, and users see it first."""

from __future__ import annotations

import math

import cv2
import numpy as np

from training.inference.coarse import coarse
from training.settings.evaluation import ColorFix

_COARSER = 2
"""Levels of `lab` that the lightness is coarser by."""


def fix_colors(
    restored: np.ndarray, lq: np.ndarray, how: ColorFix, *, scale: float, strength: float = 1.0
) -> np.ndarray:
    """The restored picture with the colors of the LQ, both RGB in [0, 1], float32 (H, W, 3).

    What is coarse depends on the scale: levels of StableSR's wavelet are 5 at x4, as there.

    Args:
        lq: the LQ at the size of the result.
        scale: by which the LQ was enlarged.
        strength: from 0, which changes nothing, to 1.
    """
    if how == "off" or strength == 0:
        return restored
    levels = _levels(scale)
    if how == "wavelet":
        change = coarse(lq - restored, levels)
    else:
        change = _lab_fixed(restored, lq, levels) - restored
    change *= strength
    change += restored
    return change


def color_reach(how: ColorFix, scale: float) -> int:
    """How far from a pixel is what `fix_colors` looks at, pixels."""
    if how == "off":
        return 0
    levels = _levels(scale) + (_COARSER if how == "lab" else 0)
    return 2**levels - 1


def _levels(scale: float) -> int:
    return 3 + round(math.log2(scale))


def _lab_fixed(restored: np.ndarray, lq: np.ndarray, levels: int) -> np.ndarray:
    lab, wanted = (cv2.cvtColor(one, cv2.COLOR_RGB2LAB) for one in (restored, lq))
    wanted -= lab
    lab[..., 0] += coarse(wanted[..., 0], levels + _COARSER)
    lab[..., 1:] += coarse(wanted[..., 1:], levels)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)

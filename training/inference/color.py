"""Gives a restored picture the colors of its LQ: networks change them, and users see it first."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np

ColorFix = Literal["wavelet", "lab", "off"]
"""What is taken from the LQ: `wavelet` everything coarse, `lab` the coarse hues, and of the
lightness only what is coarser still, `off` nothing."""

_COARSER = 2
"""Levels of `lab` that the lightness is coarser by."""
_STRIPS = 12
"""Sides of a picture over a border's width, from which on its borders by themselves take less time
than all of it."""


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


def coarse(image: np.ndarray, levels: int) -> np.ndarray:
    """What is left of float32 (H, W[, C]) below `levels` levels of details.

    The wavelet transform with holes of StableSR (arXiv:2305.07015): at every level the kernel
    (1, 2, 1)/4 along both sides, its taps 1, 2, 4, ... pixels apart. Away from borders all levels
    together are two means over 2^levels pixels, which take a fraction of the time:
    (1 + z)(1 + z^2)(1 + z^4)... = 1 + z + z^2 + z^3 + ...
    """
    size = 2**levels
    if min(image.shape[:2]) < _STRIPS * (size - 1):
        return _by_levels(image, levels)
    result = image
    for before in (size // 2, size // 2 - 1):
        result = cv2.boxFilter(
            result, -1, (size, size), anchor=(before, before), borderType=cv2.BORDER_REPLICATE
        )
    for turned in (0, 1):
        _with_borders(result.swapaxes(0, turned), image.swapaxes(0, turned), levels)
    return result


def _with_borders(result: np.ndarray, image: np.ndarray, levels: int) -> None:
    """Replaces the rows at the top and the bottom, in place, by those that `_by_levels` gives."""
    reach = 2**levels - 1
    for kept, seen in (
        (slice(reach), slice(2 * reach)),
        (slice(-reach, None), slice(-2 * reach, None)),
    ):
        result[kept] = _by_levels(image[seen], levels)[kept]


def _by_levels(image: np.ndarray, levels: int) -> np.ndarray:
    """As `coarse`; each level repeats the outermost pixels of the one before."""
    for level in range(levels):
        kernel = np.zeros(2 * 2**level + 1, np.float32)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        image = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return image


def _lab_fixed(restored: np.ndarray, lq: np.ndarray, levels: int) -> np.ndarray:
    lab, wanted = (cv2.cvtColor(one, cv2.COLOR_RGB2LAB) for one in (restored, lq))
    wanted -= lab
    lab[..., 0] += coarse(wanted[..., 0], levels + _COARSER)
    lab[..., 1:] += coarse(wanted[..., 1:], levels)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)

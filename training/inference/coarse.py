"""What is coarse in a picture, by a wavelet transform with holes, in few operations."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np


def coarse(image: np.ndarray, levels: int) -> np.ndarray:
    """What is left of float32 (H, W[, C]) below `levels` levels of details.

    The wavelet transform with holes of StableSR (arXiv:2305.07015): at every level the kernel
    (1, 2, 1)/4 along both sides, its taps 1, 2, 4, ... pixels apart, and the outermost pixels
    repeated. Away from borders all levels together are two means over 2^levels pixels, which take a
    fraction of the time: (1 + z)(1 + z^2)(1 + z^4)... = 1 + z + z^2 + z^3 + ...
    """
    border = 2**levels - 1
    if min(image.shape[:2]) <= 2 * border:
        return _along_columns(_along_rows(image, levels), levels)
    result = _two_means(image, levels, (True, True))
    for axis in (0, 1):
        made, seen = result.swapaxes(0, axis), image.swapaxes(0, axis)
        for order in (1, -1):
            made[::order][:border] = _along_rows(_top(seen[::order], levels), levels)
    return result


def _along_columns(image: np.ndarray, levels: int) -> np.ndarray:
    """As `coarse`, from top to bottom only."""
    border = 2**levels - 1
    if len(image) <= 2 * border:
        return np.tensordot(_matrix(len(image), levels), image, 1)
    result = _two_means(image, levels, (True, False))
    for order in (1, -1):
        result[::order][:border] = _top(image[::order], levels)
    return result


def _along_rows(image: np.ndarray, levels: int) -> np.ndarray:
    return _along_columns(np.ascontiguousarray(image.swapaxes(0, 1)), levels).swapaxes(0, 1)


def _top(image: np.ndarray, levels: int) -> np.ndarray:
    """The first rows of `_along_columns`, up to where the border decides about none."""
    border = 2**levels - 1
    return np.tensordot(_matrix(2 * border, levels)[:border], image[: 2 * border], 1)


def _two_means(image: np.ndarray, levels: int, sides: tuple[bool, bool]) -> np.ndarray:
    """Means over 2^levels places of means over as many, down and across where that is asked for."""
    width = 2**levels
    size = [width if asked else 1 for asked in reversed(sides)]
    for before in (width // 2, width // 2 - 1):
        anchor = [before if asked else 0 for asked in reversed(sides)]
        image = cv2.boxFilter(image, -1, size, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
    return image


@cache
def _matrix(length: int, levels: int) -> np.ndarray:
    """(length, length): a column of pixels to what all levels make of it, one by one."""
    result = np.eye(length, dtype=np.float32)
    for level in range(levels):
        kernel = np.zeros(2 * 2**level + 1, np.float32)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        result = cv2.sepFilter2D(
            result, -1, np.ones(1, np.float32), kernel, borderType=cv2.BORDER_REPLICATE
        )
    return result

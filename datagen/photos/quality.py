"""Measures what the filters compare: a photo's sharpness and its JPEG quality."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SHARPNESS_SIDE = 512
"""Photos are shrunk to this side's square in pixels before their sharpness is measured."""

# ISO/IEC 10918-1 (JPEG), table K.1, luminance, row by row.
_STANDARD_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of a photo, uint8 (H, W, 3), in squared 8-bit levels.

    The luma (BT.601) is first shrunk by area to at most 512x512 pixels in all, so the number does
    not depend on the size of the file. Source: Pech-Pacheco et al. 2000, equation 7, with
    the 4-neighbor Laplacian; operator LAP4 in Pertuz et al. 2013.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = luma.shape
    factor = SHARPNESS_SIDE / (height * width) ** 0.5
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(luma, cv2.CV_32F, ksize=1).var(dtype=np.float64))


def jpeg_quality(luma_table: Sequence[int]) -> int:
    """The libjpeg quality, 1..100, whose luma table is nearest to these 64 divisors (row by row).

    Exact for files of libjpeg and its forks; for the tables of cameras and other programs the
    quality with the smallest mean |log ratio|. Of equal tables the highest quality.
    """
    table = np.log(np.maximum(np.asarray(luma_table, np.float64), 1))
    distances = np.abs(np.log(_libjpeg_tables()) - table).mean(axis=1)
    return 100 - int(np.argmin(distances[::-1]))


def _libjpeg_tables() -> np.ndarray:
    """float64 (100, 64): the luma table of each quality (libjpeg, jpeg_quality_scaling)."""
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    scaled = (_STANDARD_LUMA * percent[:, None] + 50) // 100
    return np.clip(scaled, 1, 255).astype(np.float64)

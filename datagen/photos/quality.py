"""Measures what the filters compare: a photo's sharpness and its JPEG quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

_SHARPNESS_SIDE = 512


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the Laplacian of a photo, uint8 (H, W, 3), in squared 8-bit levels.

    The luma (BT.601) is first shrunk by area to at most 512x512 pixels in all, so the number does
    not depend on the size of the file. Source: Pech-Pacheco et al. 2000, equation 7, with
    the 4-neighbor Laplacian; operator LAP4 in Pertuz et al. 2013.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = luma.shape
    factor = _SHARPNESS_SIDE / (height * width) ** 0.5
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


@lru_cache(maxsize=1)
def _libjpeg_tables() -> np.ndarray:
    """float64 (100, 64): the luma table of each quality, as libjpeg writes it."""
    tables = []
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        file.seek(0)
        tables.append(JpegImagePlugin.JpegImageFile(file).quantization[0])
    return np.array(tables, np.float64)

"""Turns pixels and a drawn seed into noise of the Real-ESRGAN family, in 8-bit levels.

Formulas: Wang et al. 2021, section 3.2. One seed gives one noise whatever the number of threads.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

_BINS = 4096
"""Equally likely slices of each Poisson distribution in the table (12 random bits a value)."""


def gaussian_noise(
    shape: tuple[int, int, int], *, sigma: float, gray: bool, seed: int
) -> np.ndarray:
    """sigma * N(0, 1) in 8-bit levels, float32 (H, W, C) or (H, W, 1) for gray."""
    height, width, channels = shape
    noise = np.empty((height, width * (1 if gray else channels)), np.float32)
    # OpenCV's normal numbers are three times faster than NumPy's; its generator is per thread.
    cv2.setRNGSeed(seed)
    cv2.randn(noise, 0, sigma)
    return noise.reshape(height, width, -1)


def poisson_noise(pixels: np.ndarray, *, scale: float, gray: bool, seed: int) -> np.ndarray:
    """Shot noise (Poisson(q vals) / vals - q) * scale of the rounded pixels, in 8-bit levels.

    vals = 2^ceil(log2(number of distinct q)). `pixels` are levels (H, W, 3); the result
    is float32 (H, W, 3), or (H, W, 1) for gray, where q is the luma. Drawn by inverting the
    distribution on a table of equally likely slices, so the mean is exact.
    """
    levels = _rounded(pixels)
    if gray:
        levels = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)[..., None]
    distinct = int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256)))
    table = _shot_noise_table(2 ** math.ceil(math.log2(distinct)))
    slices = np.random.Generator(np.random.SFC64(seed)).integers(
        0, _BINS, size=levels.shape, dtype=np.uint16
    )
    return table[levels, slices] * np.float32(scale)


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


@lru_cache(maxsize=8)
def _shot_noise_table(vals: int) -> np.ndarray:
    """The mean of (Poisson(q vals) / vals - q) * 255 in each slice of each level, (256, _BINS).

    With Q the quantile function and F the distribution function, the integral of Q from 0 to F(k)
    is sum_{i<=k} i p_i and it is linear between, so the mean in each slice is exact.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    table = np.empty((256, _BINS))
    for level in range(256):
        rate = level / 255 * vals
        counts = np.arange(int(rate + 12 * math.sqrt(rate) + 20))
        log_rate = math.log(rate) if rate else -1e9
        log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
        chances = np.exp(counts * log_rate - rate - log_factorial)
        chances /= chances.sum()
        reached = np.concatenate([[0], np.cumsum(chances)])
        integral = np.concatenate([[0], np.cumsum(counts * chances)])
        slices = np.diff(np.interp(edges, reached, integral)) * _BINS
        table[level] = (slices - rate) / vals * 255
    return table.astype(np.float32)

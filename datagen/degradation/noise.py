"""Turns pixels and a drawn seed into noise of the Real-ESRGAN family, in 8-bit levels.

Formulas: Wang et al. 2021, section 3.2. One seed gives the same noise with any number of threads.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

_BINS = 4096
"""Equally likely slices of each Poisson distribution in the table (12 random bits per value)."""


def gaussian_noise(
    shape: tuple[int, int, int], *, sigma: float, gray: bool, seed: int
) -> np.ndarray:
    """sigma * N(0, 1) in 8-bit levels, float32 (H, W, 3); gray is one plane for all channels."""
    height, width, channels = shape
    noise = np.empty((height, width * (1 if gray else channels)), np.float32)
    # OpenCV's normal numbers are three times faster than NumPy's; it has a generator per thread.
    cv2.setRNGSeed(seed)
    cv2.randn(noise, 0, sigma)
    return _in_all_channels(noise) if gray else noise.reshape(shape)


def poisson_noise(pixels: np.ndarray, *, scale: float, gray: bool, seed: int) -> np.ndarray:
    """Shot noise (Poisson(q vals) / vals - q) * scale of the rounded pixels, in 8-bit levels.

    vals = 2^ceil(log2(number of distinct q)). `pixels` and result are float32 levels (H, W, 3); for
    gray, q is the luma and all channels get its noise. Drawn by inverting the distribution on a
    table of equally likely slices, so the mean is exact.
    """
    levels = rounded(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if gray else pixels)
    distinct = int(np.count_nonzero(cv2.calcHist([levels.reshape(-1)], [0], None, [256], [0, 256])))
    table = _shot_noise_table(2 ** math.ceil(math.log2(distinct)))
    slices = _random_slices(levels.size, seed).reshape(levels.shape)
    rows = np.multiply(levels, _BINS, dtype=np.int32)
    noise = np.take(table, np.add(rows, slices, out=rows))
    noise *= np.float32(scale)
    return _in_all_channels(noise) if gray else noise


def _random_slices(count: int, seed: int) -> np.ndarray:
    """Uniform integers below _BINS, uint16 (count,), cut out of the generator's raw words."""
    words = np.random.SFC64(seed).random_raw(-(-count // 4)).astype("<u8", copy=False)
    return words.view("<u2")[:count] & np.uint16(_BINS - 1)


def rounded(levels: np.ndarray) -> np.ndarray:
    """uint8 nearest to float32 levels, half to even."""
    return cv2.add(levels, (0, 0, 0, 0), dtype=cv2.CV_8U)  # saturates; 3x faster than NumPy


def clipped(levels: np.ndarray) -> np.ndarray:
    """float32 levels clipped to 0..255, in place."""
    return np.clip(levels, 0, 255, out=levels)


def _in_all_channels(plane: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(plane, cv2.COLOR_GRAY2RGB)


@lru_cache(maxsize=8)
def _shot_noise_table(vals: int) -> np.ndarray:
    """The mean of (Poisson(q vals) / vals - q) * 255 in each slice of each level, (256 * _BINS,).

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
    return table.ravel().astype(np.float32)

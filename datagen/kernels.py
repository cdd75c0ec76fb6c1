"""Turns blur parameters into kernels of the Real-ESRGAN family, and pixels into blurred pixels.

Formulas: Wang et al. 2021, section 3.2 and appendix A. Knows no random numbers and no settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

TOLERANCE = 1e-4
"""Largest L1 error of a simplified kernel: no pixel moves by more than 0.0255 of an 8-bit level."""

_DIRECT_WIDTH = 11
"""Widest kernel that OpenCV applies tap by tap; wider ones go through a slower DFT."""


def gaussian_kernel(size: int, *, sigma_x: float, sigma_y: float, theta: float = 0.0) -> np.ndarray:
    """exp(-d/2), d = x^T S^-1 x, S = U diag(sigma_x^2, sigma_y^2) U^T; (size, size), sum 1."""
    return _normalised(np.exp(-0.5 * _distance(size, sigma_x, sigma_y, theta)))


def generalized_kernel(
    size: int, *, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float
) -> np.ndarray:
    """exp(-d^beta / 2); beta = 1 is the Gaussian."""
    return _normalised(np.exp(-0.5 * _distance(size, sigma_x, sigma_y, theta) ** beta))


def plateau_kernel(
    size: int, *, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float
) -> np.ndarray:
    """1 / (d^beta + 1)."""
    return _normalised(1 / (_distance(size, sigma_x, sigma_y, theta) ** beta + 1))


def sinc_kernel(size: int, *, omega: float) -> np.ndarray:
    """The circular low pass omega J1(omega r) / (2 pi r), omega^2 / (4 pi) at r = 0; it rings."""
    x, y = _grid(size)
    radius = np.hypot(x, y)
    centre = size // 2
    radius[centre, centre] = 1
    kernel = omega * _bessel_j1(omega * radius) / (2 * np.pi * radius)
    kernel[centre, centre] = omega**2 / (4 * np.pi)
    return _normalised(kernel)


def _bessel_j1(x: np.ndarray) -> np.ndarray:
    """J1 by Bessel's integral, mean of cos(a - x sin a) over half a turn.

    The midpoint rule of a smooth periodic function converges faster than any power: 96 points give
    1e-14 up to x = 60, more than any kernel asks for.
    """
    values, where = np.unique(x, return_inverse=True)
    angles = (np.arange(96) + 0.5) * np.pi / 96
    return np.cos(angles - values[:, None] * np.sin(angles)).mean(axis=1)[where].reshape(x.shape)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _distance(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    x, y = _grid(size)
    along = math.cos(theta) * x + math.sin(theta) * y
    across = math.cos(theta) * y - math.sin(theta) * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


@dataclass(frozen=True)
class Filter:
    """The cheapest form of a kernel within TOLERANCE: separable terms, or else its taps."""

    terms: tuple[tuple[np.ndarray, np.ndarray], ...]
    taps: np.ndarray | None

    @classmethod
    def of(cls, kernel: np.ndarray) -> Filter:
        kernel = _trimmed(kernel)
        terms = _separable_terms(kernel, limit=_affordable_terms(len(kernel)))
        return cls(terms, None if terms else _taps(kernel))

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Filters float32 (H, W, C) with reflect-101 borders."""
        if self.taps is not None:
            return cv2.filter2D(pixels, cv2.CV_32F, self.taps, borderType=cv2.BORDER_REFLECT_101)
        (column, row), *others = self.terms
        total = _separable(pixels, column, row)
        for column, row in others:
            cv2.add(total, _separable(pixels, column, row), dst=total)
        return total


def _separable(pixels: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(pixels, cv2.CV_32F, row, column, borderType=cv2.BORDER_REFLECT_101)


def _trimmed(kernel: np.ndarray) -> np.ndarray:
    """Cuts a rim that carries next to nothing: it costs time, and its denormal taps very much."""
    magnitude = np.abs(kernel)
    for rim in range(len(kernel) // 2, 0, -1):
        inner = magnitude[rim:-rim, rim:-rim]
        if magnitude.sum() - inner.sum() <= TOLERANCE / 2:
            return _normalised(kernel[rim:-rim, rim:-rim])
    return kernel


def _affordable_terms(size: int) -> int:
    """How many separable terms cost less than the kernel itself, as measured on OpenCV 5.

    Milliseconds for 512 x 512 x 3: 0.15 size + 0.4 a term, 0.055 size^2 direct, 23 by DFT.
    """
    whole = 0.055 * size**2 if size <= _DIRECT_WIDTH else 23.0
    return max(1, int(whole / (0.15 * size + 0.4)))


def _mirrored(values: np.ndarray) -> np.ndarray:
    """Exactly even or odd, as all terms here are but for rounding: OpenCV then halves the work."""
    flipped = values[::-1]
    sign = 1 if np.dot(values, flipped) > 0 else -1
    return (values + sign * flipped) / 2


def _taps(values: np.ndarray) -> np.ndarray:
    """As float32, without the denormal numbers that processors multiply a hundred times slower."""
    return np.where(np.abs(values) < 1e-20, 0, values).astype(np.float32)


def _separable_terms(
    kernel: np.ndarray, *, limit: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Columns and rows whose outer products add up to the kernel; empty if over `limit`."""
    columns, strengths, rows = np.linalg.svd(kernel)
    rest = kernel.copy()
    for rank in range(1, min(limit, len(kernel)) + 1):
        term = rank - 1
        columns[:, term] = _mirrored(columns[:, term]) * strengths[term]
        rows[term] = _mirrored(rows[term])
        rest -= np.outer(columns[:, term], rows[term])
        if np.abs(rest).sum() <= TOLERANCE / 2:
            return tuple((_taps(columns[:, index]), _taps(rows[index])) for index in range(rank))
    return ()

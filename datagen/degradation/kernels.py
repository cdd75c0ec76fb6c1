"""Turns blur parameters into kernels of the Real-ESRGAN family, and pixels into blurred pixels.

Formulas: Wang et al. 2021, section 3.2 and appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

TOLERANCE = 1e-4
"""Largest L1 error of a simplified kernel: no pixel changes by over 0.0255 of an 8-bit level."""

_DIRECT_TAPS = 120
"""Most taps for which OpenCV convolves directly; larger kernels go through a slower DFT."""

_DIRECT_WIDTH = 15
"""Widest kernel whose halves have at most that many."""

_BORDER = cv2.BORDER_REFLECT_101


def gaussian_kernel(
    size: int, *, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """exp(-d^beta / 2), d = x^T S^-1 x, S = U diag(sigma_x^2, sigma_y^2) U^T; (size, size), sum 1.

    `beta` is 1 for the Gaussian, another number for the generalized one.
    """
    return _normalized(np.exp(-0.5 * _distance(size, sigma_x, sigma_y, theta) ** beta))


def plateau_kernel(
    size: int, *, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float
) -> np.ndarray:
    """1 / (d^beta + 1)."""
    return _normalized(1 / (_distance(size, sigma_x, sigma_y, theta) ** beta + 1))


def sinc_kernel(size: int, *, omega: float) -> np.ndarray:
    """The circular low pass omega J1(omega r) / (2 pi r), omega^2 / (4 pi) at r = 0; it rings."""
    x, y = _grid(size)
    radius = np.hypot(x, y)
    center = size // 2
    radius[center, center] = 1
    kernel = omega * _bessel_j1(omega * radius) / (2 * np.pi * radius)
    kernel[center, center] = omega**2 / (4 * np.pi)
    return _normalized(kernel)


def _bessel_j1(x: np.ndarray) -> np.ndarray:
    """J1 by Bessel's integral, mean of cos(a - x sin a) over half a turn.

    The midpoint rule of a smooth periodic function converges faster than any power: 96 points give
    1e-14 up to x = 60, beyond any kernel here. `scipy.special.j1` differs in the last bits, and
    with it one kernel in some thousands: shards would no longer have the same bytes.
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


def _normalized(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


def sharpened(
    pixels: np.ndarray, *, strength: float, kernel_size: int, threshold: float
) -> np.ndarray:
    """float32 levels (H, W, 3) sharpened where they differ from blurred ones by the threshold.

    The unsharp mask that Real-ESRGAN sharpens its targets with, as in its code. The mask of the
    edges is blurred as well, so that nothing begins abruptly.
    """

    size, sigma = (kernel_size, kernel_size), 0.15 * kernel_size + 0.35

    def blurred(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, size, sigma, borderType=_BORDER)

    difference = pixels - blurred(pixels)
    edges = blurred((np.abs(difference) > threshold).astype(np.float32))
    sharp = np.clip(pixels + np.float32(strength) * difference, 0, 255)
    return edges * sharp + (1 - edges) * pixels


@dataclass(frozen=True)
class Filter:
    """A kernel ready for use: whole, and as separable terms that add up to it within TOLERANCE.

    A whole kernel costs size^2 multiplications per pixel, or a DFT; its terms (columns times rows)
    cost 2 size each. Kernels are random: a Gaussian along the axes has one term, a rotated one
    up to 17. Neither way is fast for all of them, so each filter compares the two costs.
    """

    columns: np.ndarray
    rows: np.ndarray
    """float64 (terms, size) each: the kernel is the sum of the outer products."""
    taps: np.ndarray
    """float32 (size, size)."""

    @classmethod
    def of(cls, kernel: np.ndarray) -> Filter:
        kernel = _trimmed(kernel)
        columns, rows = _separable_terms(kernel)
        return cls(columns, rows, _without_denormals(kernel))

    @property
    def size(self) -> int:
        return len(self.taps)

    @property
    def terms(self) -> int:
        return len(self.columns)

    @property
    def separable_cost(self) -> float:
        """Milliseconds per megapixel (of three channels), term by term, measured on OpenCV 5."""
        return self.terms * (0.6 * self.size + 0.4)

    @property
    def cost(self) -> float:
        """Milliseconds per megapixel (of three channels) of `apply`."""
        whole = 0.135 * self.size**2 + 1 if self.size <= _DIRECT_WIDTH else 48.0
        return min(whole, self.separable_cost)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Filters float32 (H, W, 3) with reflect-101 borders."""
        if self.cost < self.separable_cost:
            return _filtered(pixels, self.taps)
        total, *others = [
            cv2.sepFilter2D(pixels, cv2.CV_32F, row, column, borderType=_BORDER)
            for column, row in zip(*self.applied_terms(), strict=True)
        ]
        for other in others:
            cv2.add(total, other, dst=total)
        return total

    def applied_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows as passed to OpenCV, float32 (terms, size) each."""
        return _without_denormals(self.columns), _without_denormals(self.rows)


def _filtered(pixels: np.ndarray, taps: np.ndarray) -> np.ndarray:
    half = len(taps) // 2
    if taps.size <= _DIRECT_TAPS or len(taps) > _DIRECT_WIDTH:
        return cv2.filter2D(pixels, cv2.CV_32F, taps, borderType=_BORDER)
    upper, lower = taps[: half + 1], taps[half:].copy()
    lower[0] = 0  # the middle row is in the upper half
    total = cv2.filter2D(pixels, cv2.CV_32F, upper, anchor=(half, half), borderType=_BORDER)
    rest = cv2.filter2D(pixels, cv2.CV_32F, lower, anchor=(half, 0), borderType=_BORDER)
    return cv2.add(total, rest, dst=total)


def _trimmed(kernel: np.ndarray) -> np.ndarray:
    """Cuts a rim of negligible weight: it costs time, and its denormal taps cost most."""
    magnitude = np.abs(kernel)
    for rim in range(len(kernel) // 2, 0, -1):
        inner = magnitude[rim:-rim, rim:-rim]
        if magnitude.sum() - inner.sum() <= TOLERANCE / 2:
            return _normalized(kernel[rim:-rim, rim:-rim])
    return kernel


def _without_denormals(values: np.ndarray) -> np.ndarray:
    """As float32, without denormal numbers, which processors multiply a hundred times slower."""
    return np.where(np.abs(values) < 1e-20, 0, values).astype(np.float32)


def _separable_terms(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fewest columns and rows whose outer products add up to the kernel.

    All kernels here are equal to themselves rotated by half a turn. Such a kernel is the sum of one
    that is even and one that is odd along both sides, and its terms are those of the two.
    """
    even = (kernel + kernel[:, ::-1]) / 2
    parts = [np.linalg.svd(even), np.linalg.svd(kernel - even)]
    strengths = np.concatenate([part[1] for part in parts])
    order = np.argsort(-strengths, kind="stable")
    columns = np.concatenate([part[0].T for part in parts])[order] * strengths[order, None]
    rows = np.concatenate([part[2] for part in parts])[order]
    rest = kernel.copy()
    for term in range(len(order)):
        columns[term], rows[term] = _mirrored(columns[term]), _mirrored(rows[term])
        rest -= np.outer(columns[term], rows[term])
        if np.abs(rest).sum() <= TOLERANCE / 2:
            break
    return columns[: term + 1], rows[: term + 1]


def _mirrored(values: np.ndarray) -> np.ndarray:
    """Exactly even or odd, as all terms are but for rounding: OpenCV then halves the work."""
    flipped = values[::-1]
    sign = 1 if np.dot(values, flipped) > 0 else -1
    return (values + sign * flipped) / 2

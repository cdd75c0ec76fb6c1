"""Kernels against their formulas, fast filters against the plain sum of taps."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from scipy import ndimage
from scipy.special import j1

from datagen.degradation import kernels


def _by_hand(size: int, value: object) -> np.ndarray:
    """value(x, y) at every tap, divided by the sum."""
    assert callable(value)
    half = size // 2
    taps = [[value(x, y) for x in range(-half, half + 1)] for y in range(-half, half + 1)]
    return np.array(taps) / np.sum(taps)


def _mahalanobis(x: float, y: float, sigma_x: float, sigma_y: float, theta: float) -> float:
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    covariance = turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T
    position = np.array([x, y])
    return float(position @ np.linalg.inv(covariance) @ position)


@pytest.mark.parametrize("size,sigma_x,sigma_y,theta", [(7, 0.4, 2, 0.3), (21, 3, 1.2, -2.1)])
@pytest.mark.parametrize("beta", [0.5, 1.0, 3.3])
def test_kernels_equal_their_formulas(
    size: int, sigma_x: float, sigma_y: float, theta: float, beta: float
) -> None:
    shape = {"sigma_x": sigma_x, "sigma_y": sigma_y, "theta": theta}

    def distance(x: float, y: float) -> float:
        return _mahalanobis(x, y, sigma_x, sigma_y, theta)

    gaussian = _by_hand(size, lambda x, y: math.exp(-distance(x, y) / 2))
    generalized = _by_hand(size, lambda x, y: math.exp(-(distance(x, y) ** beta) / 2))
    plateau = _by_hand(size, lambda x, y: 1 / (distance(x, y) ** beta + 1))
    assert np.allclose(kernels.gaussian_kernel(size, **shape), gaussian, atol=1e-12)
    assert np.allclose(kernels.gaussian_kernel(size, beta=beta, **shape), generalized, atol=1e-12)
    assert np.allclose(kernels.plateau_kernel(size, beta=beta, **shape), plateau, atol=1e-12)


@pytest.mark.parametrize("size", [7, 21, 41])
@pytest.mark.parametrize("omega", [math.pi / 5, 2.0, math.pi])
def test_the_sinc_kernel_equals_its_formula(size: int, omega: float) -> None:
    def value(x: float, y: float) -> float:
        radius = math.hypot(x, y)
        if radius == 0:
            return omega**2 / (4 * math.pi)
        return omega * j1(omega * radius) / (2 * math.pi * radius)

    kernel = kernels.sinc_kernel(size, omega=omega)
    assert np.allclose(kernel, _by_hand(size, value), atol=1e-12)
    assert (kernel.min() < 0) == (omega * size * 0.7 > 3.84)  # first zero of J1


def _drawn_kernels() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = []
    for size in range(7, 23, 2):
        for largest in (1.0, 3.0):
            sigma_x, sigma_y = rng.uniform(0.2, largest, 2)
            shape = {"sigma_x": sigma_x, "sigma_y": sigma_y, "theta": rng.uniform(-3, 3)}
            found += [
                kernels.gaussian_kernel(size, sigma_x=sigma_x, sigma_y=sigma_x),
                kernels.gaussian_kernel(size, **shape),
                kernels.gaussian_kernel(size, beta=rng.uniform(0.5, 4), **shape),
                kernels.plateau_kernel(size, beta=rng.uniform(1, 2), **shape),
                kernels.sinc_kernel(size, omega=rng.uniform(1, 3)),
            ]
    return found


def test_fast_filters_equal_the_sum_of_taps() -> None:
    """`mirror` of SciPy is OpenCV's reflect-101."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 53, 3), dtype=np.uint8)
    for kernel in _drawn_kernels():
        expected = ndimage.correlate(pixels.astype(float), kernel[..., None], mode="mirror")
        blurred = kernels.Filter.of(kernel).apply(pixels.astype(np.float32))
        assert blurred.dtype == np.float32
        assert np.abs(blurred - expected).max() < 0.03  # TOLERANCE of 255 levels


def test_every_filter_algorithm_is_used() -> None:
    """Term by term, tap by tap, in halves, by DFT: all four are compared above."""
    ways = set()
    for kernel in _drawn_kernels():
        chosen = kernels.Filter.of(kernel)
        if chosen.cost == chosen.separable_cost:
            ways.add("separable")
        else:
            ways.add("whole" if chosen.size <= 9 else "halves" if chosen.size <= 15 else "dft")
    assert ways == {"separable", "whole", "halves", "dft"}


def test_terms_add_up_to_the_kernel() -> None:
    for kernel in _drawn_kernels():
        chosen = kernels.Filter.of(kernel)
        total = np.einsum("ty,tx->yx", chosen.columns, chosen.rows)
        rim = (len(kernel) - chosen.size) // 2
        missing = kernel - np.pad(total, rim)
        assert np.abs(missing).sum() < 1.5 * kernels.TOLERANCE
        assert chosen.terms <= chosen.size


def test_filters_do_not_depend_on_threads() -> None:
    pixels = np.random.default_rng(1).random((300, 400, 3), dtype=np.float32)
    for kernel in _drawn_kernels()[-10:]:
        results = []
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            results.append(kernels.Filter.of(kernel).apply(pixels))
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_filters_hold_no_denormal_taps() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    for kernel in _drawn_kernels():
        chosen = kernels.Filter.of(kernel)
        taps = (chosen.taps, *chosen.applied_terms())
        for values in taps:
            assert not np.any((np.abs(values) > 0) & (np.abs(values) < tiny))

"""Noise against its closed-form moments, and the same noise from the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import stats

from datagen.noise import gaussian_noise, poisson_noise

_SHAPE = (256, 256, 3)


@pytest.mark.parametrize("sigma", [1.0, 25.0])
def test_gaussian(sigma: float) -> None:
    noise = gaussian_noise(_SHAPE, sigma=sigma, gray=False, seed=5)
    assert noise.shape == _SHAPE and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01 * sigma
    assert abs(noise.std() / sigma - 1) < 0.01
    assert abs(stats.kurtosis(noise.ravel())) < 0.05
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    assert gaussian_noise(_SHAPE, sigma=sigma, gray=True, seed=5).shape == (256, 256, 1)


@pytest.mark.parametrize("level", [1, 40, 128, 255])
@pytest.mark.parametrize("scale", [0.05, 2.5])
def test_poisson_moments(level: int, scale: float) -> None:
    """Mean 0, variance scale^2 q / vals, with vals = 256 where all levels occur."""
    pixels = np.full(_SHAPE, level, np.uint8)
    pixels[0, :, :] = np.arange(256)[:, None]
    noise = poisson_noise(pixels, scale=scale, gray=False, seed=9)[1:] / 255
    variance = scale**2 * (level / 255) / 256
    assert abs(noise.mean()) < 5 * np.sqrt(variance / noise.size) + 1e-9
    assert abs(noise.var() / variance - 1) < 0.03
    assert abs(stats.skew(noise.ravel()) - 1 / np.sqrt(level / 255 * 256)) < 0.12


def test_poisson_depends_on_how_many_levels_occur() -> None:
    """vals = 2^ceil(log2(distinct)): 3 levels give 4, so far stronger noise."""
    pixels = np.random.default_rng(0).choice(np.array([60, 120, 180], np.uint8), _SHAPE)
    noise = poisson_noise(pixels, scale=1, gray=False, seed=1) / 255
    for level in (60, 120, 180):
        assert abs(noise[pixels == level].var() / (level / 255 / 4) - 1) < 0.03


def test_poisson_gray_is_the_noise_of_the_luma() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, _SHAPE, dtype=np.uint8)
    luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    noise = poisson_noise(pixels, scale=1, gray=True, seed=1)[..., 0] / 255
    assert noise.shape == luma.shape
    ratio = noise**2 / np.maximum(luma / 255 / 256, 1e-6)
    assert abs(ratio[luma > 0].mean() - 1) < 0.03


def test_black_has_no_shot_noise() -> None:
    assert not poisson_noise(np.zeros((8, 8, 3), np.uint8), scale=3, gray=False, seed=0).any()


def test_a_seed_is_one_noise() -> None:
    pixels = np.random.default_rng(0).random(_SHAPE, dtype=np.float32) * 255
    results = []
    for threads in (1, 2, 3):
        cv2.setNumThreads(threads)
        results.append(
            (
                gaussian_noise(_SHAPE, sigma=3, gray=False, seed=8),
                poisson_noise(pixels, scale=1, gray=False, seed=8),
            )
        )
    for gaussian, poisson in results[1:]:
        assert np.array_equal(gaussian, results[0][0]) and np.array_equal(poisson, results[0][1])
    assert not np.array_equal(results[0][0], gaussian_noise(_SHAPE, sigma=3, gray=False, seed=9))

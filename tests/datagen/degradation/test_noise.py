"""Noise against its closed-form moments, and the same noise from the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import stats

from datagen.degradation.masks import kept_pixels
from datagen.degradation.noise import clipped, gaussian_noise, poisson_noise, rounded

_SHAPE = (256, 256, 3)


@pytest.mark.parametrize("sigma", [1.0, 25.0])
def test_gaussian_noise_has_the_moments_of_its_distribution(sigma: float) -> None:
    noise = gaussian_noise(_SHAPE, sigma=sigma, gray=False, seed=5)
    assert noise.shape == _SHAPE and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01 * sigma
    assert abs(noise.std() / sigma - 1) < 0.01
    assert abs(stats.kurtosis(noise.ravel())) < 0.05
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    assert stats.kstest(noise.ravel()[::7] / sigma, stats.norm.cdf).pvalue > 1e-3
    gray = gaussian_noise(_SHAPE, sigma=sigma, gray=True, seed=5)
    assert gray.shape == _SHAPE and np.ptp(gray, axis=2).max() == 0
    assert abs(gray.std() / sigma - 1) < 0.015


@pytest.mark.parametrize("level", [1, 40, 128, 255])
@pytest.mark.parametrize("scale", [0.05, 2.5])
def test_poisson_noise_has_the_moments_of_its_distribution(level: int, scale: float) -> None:
    """Mean 0, variance scale^2 q / vals, with vals = 256 where all levels occur."""
    pixels = np.full(_SHAPE, level, np.float32)
    pixels[0, :, :] = np.arange(256)[:, None]
    noise = poisson_noise(pixels, scale=scale, gray=False, seed=9)[1:] / 255
    variance = scale**2 * (level / 255) / 256
    assert abs(noise.mean()) < 5 * np.sqrt(variance / noise.size) + 1e-9
    assert abs(noise.var() / variance - 1) < 0.03
    assert abs(stats.skew(noise.ravel()) - 1 / np.sqrt(level / 255 * 256)) < 0.12


def test_poisson_depends_on_how_many_levels_occur() -> None:
    """vals = 2^ceil(log2(distinct)): 3 levels give 4, so far stronger noise."""
    pixels = np.random.default_rng(0).choice(np.array([60, 120, 180], np.float32), _SHAPE)
    noise = poisson_noise(pixels, scale=1, gray=False, seed=1) / 255
    for level in (60, 120, 180):
        assert abs(noise[pixels == level].var() / (level / 255 / 4) - 1) < 0.03


@pytest.mark.parametrize("level", [2, 90])
def test_poisson_is_distributed_as_numpys(level: int) -> None:
    """Where few photons arrive the steps of the distribution show: compare their counts."""
    pixels = np.full(_SHAPE, level, np.float32)
    pixels[0, :, :] = np.arange(256)[:, None]
    rate = level / 255 * 256
    counts = poisson_noise(pixels, scale=1, gray=False, seed=9)[1:] / 255 * 256 + rate
    reference = np.random.default_rng(0).poisson(rate, counts.size)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        error = np.quantile(counts, quantile) - np.quantile(reference, quantile)
        assert abs(error) <= 1


def test_poisson_gray_is_the_noise_of_the_luma() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, _SHAPE).astype(np.float32)
    luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    noise = poisson_noise(pixels, scale=1, gray=True, seed=1) / 255
    assert noise.shape == _SHAPE and np.ptp(noise, axis=2).max() == 0
    ratio = noise[..., 0] ** 2 / np.maximum(luma / 255 / 256, 1e-6)
    assert abs(ratio[luma > 0].mean() - 1) < 0.03


def test_black_has_no_shot_noise() -> None:
    assert not poisson_noise(np.zeros((8, 8, 3), np.float32), scale=3, gray=False, seed=0).any()


@pytest.mark.parametrize("lost", [0.0, 0.9, 1.0, 0.333])
def test_mask_drops_exactly_its_fraction_anywhere(lost: float) -> None:
    masks = np.stack([kept_pixels((20, 31), lost=lost, seed=seed) for seed in range(400)])
    assert masks.shape == (400, 20, 31, 1) and set(np.unique(masks)) <= {0, 1}
    assert np.all((masks == 0).sum(axis=(1, 2, 3)) == int(lost * 620))
    if 0 < lost < 1:
        often = masks.sum(axis=0).ravel()  # binomial at each pixel, 400 (1 - lost) on average
        spread = 400 * lost * (1 - lost)
        assert 0.8 < np.var(often) / spread < 1.25
        assert np.abs(often - often.mean()).max() < 5 * np.sqrt(spread)


def test_rounding_saturates_and_takes_halves_to_even() -> None:
    levels = np.array([-3.2, -0.4, 0.5, 1.5, 2.5, 254.5, 255.4, 300, 1e6], np.float32)
    levels = np.repeat(levels, 6).reshape(9, 2, 3)
    expected = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    assert np.array_equal(rounded(levels), expected)
    assert np.array_equal(clipped(levels.copy()), np.clip(levels, 0, 255))


def test_equal_seeds_give_equal_noise() -> None:
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

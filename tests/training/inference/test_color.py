"""Colors after the network: a cast goes, details stay, gray stays gray."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from training.inference.coarse import coarse
from training.inference.color import fix_colors
from training.settings.evaluation import ColorFix


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return (data.astronaut() / 255).astype(np.float32)


def lq_of(photo: np.ndarray, scale: int) -> np.ndarray:
    """Shrunk, noisy, and enlarged again."""
    small = cv2.resize(photo, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).normal(0, 0.02, (*small.shape[:2], 1))
    small += noise.astype(np.float32)
    enlarged = cv2.resize(small, photo.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return enlarged.clip(0, 1)


def block_difference(first: np.ndarray, second: np.ndarray) -> float:
    """CIEDE2000 between the means of blocks of 32 x 32, the mean over the blocks."""
    blocks = [
        one.clip(0, 1).reshape(one.shape[0] // 32, 32, -1, 32, 3).mean(axis=(1, 3))
        for one in (first, second)
    ]
    return float(deltaE_ciede2000(*map(rgb2lab, blocks)).mean())


CASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "warm": lambda x: x * np.float32([1.1, 1, 0.88]) + np.float32([0.02, 0, -0.02]),
    "dark": lambda x: x**1.25,
}


@pytest.mark.parametrize("how", ["wavelet", "lab"])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_is_removed(photo: np.ndarray, cast: str, scale: int, how: ColorFix) -> None:
    lq, tinted = lq_of(photo, scale), CASTS[cast](photo).clip(0, 1)
    assert block_difference(tinted, lq) > 3
    assert block_difference(fix_colors(tinted, lq, how, scale=scale), lq) <= 1


@pytest.mark.parametrize("how", ["wavelet", "lab"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_colors_that_are_right_cost_little(photo: np.ndarray, scale: int, how: ColorFix) -> None:
    """Of a result as far from the original as good ones are."""
    lq = lq_of(photo, scale)
    result = (0.6 * photo + 0.4 * cv2.GaussianBlur(photo, None, scale)).clip(0, 1)
    fixed = fix_colors(result, lq, how, scale=scale).clip(0, 1)
    before, after = (peak_signal_noise_ratio(photo, one, data_range=1) for one in (result, fixed))
    assert after >= min(before, 40) - 0.3


@pytest.mark.parametrize("how", ["wavelet", "lab"])
def test_gray_stays_gray(photo: np.ndarray, how: ColorFix) -> None:
    gray = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2)
    fixed = fix_colors(gray**1.1, lq_of(gray, 4), how, scale=4)
    assert np.ptp(fixed, axis=2).max() * 255 < 0.5


def test_a_strength_is_a_share_and_off_is_nothing(photo: np.ndarray) -> None:
    lq, tinted = lq_of(photo, 4), CASTS["warm"](photo)
    whole, half, none = (
        fix_colors(tinted, lq, "wavelet", scale=4, strength=strength) for strength in (1, 0.5, 0)
    )
    np.testing.assert_allclose(half, (whole + tinted) / 2, atol=1e-6)
    assert np.array_equal(none, tinted)
    assert np.array_equal(fix_colors(tinted, lq, "off", scale=4), tinted)


def test_coarse_is_the_product_of_its_kernels() -> None:
    """Level n of (1, 2, 1)/4 with holes takes a wave of w rad/pixel to cos(2^(n-1) w)^2 of it."""
    frequency = 2 * np.pi / 50
    wave = np.sin(frequency * np.arange(400, dtype=np.float32))
    image = np.broadcast_to(wave[None, :, None], (9, 400, 3)).astype(np.float32)
    gain = np.prod([np.cos(2**n * frequency / 2) ** 2 for n in range(4)])
    inside = slice(60, -60)
    np.testing.assert_allclose(coarse(image, 4)[4, inside, 0], gain * wave[inside], atol=1e-5)


@pytest.mark.parametrize("shape", [(90, 80, 3), (90, 80), (20, 80, 3), (80, 20), (7, 5, 3)])
def test_coarse_is_the_same_in_few_operations(shape: tuple[int, ...]) -> None:
    """As level by level, borders included, also where every place is near one."""
    image = expected = np.random.default_rng(0).random(shape, np.float32)
    for level in range(4):
        for axis in (0, 1):
            rolled = [_shifted(expected, axis, by) for by in (-(2**level), 2**level)]
            expected = expected / 2 + sum(rolled) / 4
    np.testing.assert_allclose(coarse(image, 4), expected, atol=1e-6)


def _shifted(image: np.ndarray, axis: int, by: int) -> np.ndarray:
    """Moved by some pixels, with the outermost ones repeated."""
    places = (np.arange(image.shape[axis]) + by).clip(0, image.shape[axis] - 1)
    return image.take(places, axis)

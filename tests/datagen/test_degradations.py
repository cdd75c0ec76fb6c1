"""The chain: what is drawn follows the settings, and applying it holds no chance and no shift."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import stats

from datagen.degradations import (
    DrawnBlur,
    DrawnDegradation,
    DrawnDownscale,
    DrawnGaussianNoise,
    DrawnJpeg,
    DrawnPoissonNoise,
    DrawnResizeBack,
    DrawnSinc,
    Skipped,
    degrade,
    degrade_small,
    draw_degradation,
)
from datagen.operations import Blur, DegradationSettings, Downscale, Jpeg, Noise, ResizeBack

_FIRST_ORDER = DegradationSettings(
    operations=(
        Blur(probability=1, sigma=(0.2, 3)),
        Downscale(),
        Noise(gaussian_sigma=(1, 30), poisson_scale=(0.05, 3)),
        Jpeg(),
        ResizeBack(),
    )
)


@pytest.fixture(scope="module")
def draws() -> list[DrawnDegradation]:
    rng = np.random.default_rng(0)
    return [draw_degradation(_FIRST_ORDER, rng) for _ in range(4000)]


def _near(count: int, expected: float, total: int) -> bool:
    return abs(count - expected * total) < 4.5 * math.sqrt(total * expected * (1 - expected) + 1)


def test_scale_is_uniform(draws: list[DrawnDegradation]) -> None:
    scales = [drawn.scale for drawn in draws]
    assert stats.kstest(scales, stats.uniform(1, 15).cdf).pvalue > 1e-3
    fixed = draw_degradation(_FIRST_ORDER, np.random.default_rng(0), scale=4)
    assert fixed.scale == 4


def test_kernels_are_drawn_as_the_reference_does(draws: list[DrawnDegradation]) -> None:
    blurs = [drawn.operations[0] for drawn in draws]
    sincs = [blur for blur in blurs if isinstance(blur, DrawnSinc)]
    assert _near(len(sincs), 0.1, 4000)
    for sinc in sincs:
        assert (math.pi / 3 if sinc.size < 13 else math.pi / 5) <= sinc.omega <= math.pi
    plain = [blur for blur in blurs if isinstance(blur, DrawnBlur)]
    shapes = Counter(blur.shape for blur in plain)
    for shape, weight in Blur().shapes.items():
        assert _near(shapes[shape], weight, len(plain))
    assert set(Counter(blur.size for blur in plain)) == set(range(7, 23, 2))
    plateaus = [blur.beta for blur in plain if blur.shape.startswith("plateau")]
    assert _near(sum(beta == 1 for beta in plateaus), 0.5, len(plateaus))
    widths = [_variance(blur.kernel()) for blur in plain + sincs]
    assert 2.8 < np.mean(widths) < 3.4  # 3.08 of the reference
    assert np.allclose(np.quantile(widths, [0.25, 0.5, 0.75]), [0.81, 2.45, 4.67], rtol=0.15)


def _variance(kernel: np.ndarray) -> float:
    axis = np.arange(len(kernel)) - len(kernel) // 2
    return float((kernel * axis[None, :] ** 2).sum())


def test_noise_and_jpeg_are_drawn_as_set(draws: list[DrawnDegradation]) -> None:
    noises = [drawn.operations[2] for drawn in draws]
    gaussian = [noise for noise in noises if isinstance(noise, DrawnGaussianNoise)]
    poisson = [noise for noise in noises if isinstance(noise, DrawnPoissonNoise)]
    assert _near(len(gaussian), 0.5, 4000) and len(gaussian) + len(poisson) == 4000
    sigmas, scales = [item.sigma for item in gaussian], [item.scale for item in poisson]
    assert stats.kstest(sigmas, stats.uniform(1, 29).cdf).pvalue > 1e-3
    assert stats.kstest(scales, stats.uniform(0.05, 2.95).cdf).pvalue > 1e-3
    assert _near(sum(item.gray for item in gaussian), 0.4, len(gaussian))
    jpegs = [drawn.operations[3] for drawn in draws]
    qualities = [jpeg.quality for jpeg in jpegs if isinstance(jpeg, DrawnJpeg)]
    assert set(qualities) == set(range(30, 96))


def test_operations_can_be_skipped() -> None:
    settings = DegradationSettings(
        operations=(
            Blur(probability=0.3),
            Downscale(),
            Noise(probability=0.25),
            ResizeBack(),
        )
    )
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(settings, rng).operations for _ in range(1000)]
    assert _near(sum(isinstance(item[0], Skipped) for item in drawn), 0.7, 1000)
    assert _near(sum(isinstance(item[2], Skipped) for item in drawn), 0.75, 1000)


def test_a_draw_survives_json_and_decides_every_pixel(photo: Any) -> None:
    hq = photo(3, width=128, height=96)
    rng = np.random.default_rng(1)
    for _ in range(30):
        drawn = draw_degradation(DegradationSettings(), rng)
        again = DrawnDegradation.model_validate(json.loads(drawn.model_dump_json()))
        assert again == drawn
        results = []
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            results.append(degrade(hq, again))
        assert np.array_equal(results[0], results[1])
        assert results[0].shape == hq.shape and results[0].dtype == np.float32
        assert results[0].min() >= 0 and results[0].max() <= 1
        as_float = degrade(hq.astype(np.float32) / 255, drawn)
        assert np.abs(as_float - results[0]).mean() < 0.01


def test_small_image_is_the_chain_before_the_resize_back(photo: Any) -> None:
    hq = photo(3, width=128, height=96)
    operations = (
        DrawnDownscale(mode="area"),
        DrawnGaussianNoise(sigma=4, gray=False, seed=1),
        DrawnJpeg(quality=60),
        DrawnResizeBack(mode="bicubic"),
    )
    drawn = DrawnDegradation(scale=3.3, operations=operations)
    small = degrade_small(hq, drawn)
    assert small.shape == (round(96 / 3.3), round(128 / 3.3), 3) and small.dtype == np.uint8
    enlarged = cv2.resize(small.astype(np.float32), (128, 96), interpolation=cv2.INTER_CUBIC)
    assert np.allclose(degrade(hq, drawn), np.clip(enlarged / 255, 0, 1), atol=1e-6)


def test_jpeg_is_a_real_one(photo: Any) -> None:
    hq = photo(4, width=64, height=64)
    drawn = DrawnDegradation(scale=1, operations=(DrawnJpeg(quality=37),))
    data = cv2.imencode(".jpg", hq[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 37])[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(degrade_small(hq, drawn), expected)


@pytest.mark.parametrize("down", ["nearest", "area", "bilinear", "bicubic"])
@pytest.mark.parametrize("up", ["nearest", "area", "bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [1.5, 3.7, 7.9, 16.0])
def test_lq_is_registered(down: Any, up: Any, scale: float) -> None:
    """The centre of mass of a blob stays, up to the half pixel nearest cannot represent."""
    y, x = np.mgrid[:256, :256]
    blob = np.exp(-((x - 127.3) ** 2 + (y - 100.2) ** 2) / (2 * 30.0**2)).astype(np.float32)
    operations = (DrawnDownscale(mode=down), DrawnResizeBack(mode=up))
    drawn = DrawnDegradation(scale=scale, operations=operations)
    lq = degrade(np.repeat(blob[..., None], 3, axis=2), drawn)[..., 0]
    for axis in (x, y):
        shift = (lq * axis).sum() / lq.sum() - (blob * axis).sum() / blob.sum()
        assert abs(shift) < (0.55 if down == "nearest" else 0.1)


def test_scale_one_without_operations_is_the_image(photo: Any) -> None:
    hq = photo(5)
    operations = (DrawnDownscale(mode="bicubic"), DrawnResizeBack(mode="bicubic"))
    drawn = DrawnDegradation(scale=1, operations=operations)
    assert np.allclose(degrade(hq, drawn), hq / 255, atol=1e-6)
    assert np.array_equal(degrade_small(hq, drawn), hq)


def test_tiny_images_survive(photo: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        drawn = draw_degradation(DegradationSettings(), rng)
        assert np.isfinite(degrade(photo(1, width=9, height=8), drawn)).all()

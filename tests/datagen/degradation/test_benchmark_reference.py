"""The benchmark's reference paths and the fast one do the same work, so the ratio is fair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skimage.data

from datagen.degradation.apply import degrade
from datagen.degradation.draw import draw_degradation
from datagen.degradation.parameters import (
    DegradationParams,
    GaussianNoiseParams,
    JpegParams,
    PoissonNoiseParams,
)
from datagen.degradation.settings import Blur, DegradationSettings, Downscale, ResizeBack
from tests.support.reference_degradation import degrade_numpy, degrade_torch


def _without(drawn: DegradationParams, *kinds: type) -> DegradationParams:
    kept = tuple(item for item in drawn.operations if not isinstance(item, kinds))
    return drawn.model_copy(update={"operations": kept})


def _mean_difference(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - two).mean() * 255)


def test_numpy_path_agrees_with_ours(photo: Any) -> None:
    hq = photo(6, width=160, height=128)
    rng = np.random.default_rng(0)
    for _ in range(12):
        drawn = draw_degradation(DegradationSettings(), rng)
        drawn = _without(drawn, GaussianNoiseParams, PoissonNoiseParams)
        assert _mean_difference(degrade(hq, drawn), degrade_numpy(hq, drawn)) < 0.6


def test_torch_path_agrees_with_ours_but_for_jpeg(photo: Any) -> None:
    """`area` is left out: torch and OpenCV differ at factors that are no integers."""
    hq = photo(6, width=160, height=128)
    modes = ("nearest", "bilinear", "bicubic")
    operations = (Blur(), Downscale(modes=modes), ResizeBack(modes=modes), Blur())
    rng = np.random.default_rng(0)
    for _ in range(12):
        drawn = draw_degradation(DegradationSettings(operations=operations), rng)
        assert _mean_difference(degrade(hq, drawn), degrade_torch(hq, drawn)) < 2.0


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_differentiable_jpeg_is_near_a_real_one(quality: int) -> None:
    hq = skimage.data.astronaut()
    drawn = DegradationParams(scale=1, operations=(JpegParams(quality=quality),))
    error = np.square(degrade(hq, drawn) - degrade_torch(hq, drawn)).mean()
    assert -10 * np.log10(error) > 29  # 31 to 41 dB are known of Real-ESRGAN's


@pytest.mark.parametrize("kind", [GaussianNoiseParams, PoissonNoiseParams])
@pytest.mark.parametrize("gray", [False, True])
def test_reference_noise_is_as_strong_as_ours(photo: Any, kind: Any, gray: bool) -> None:
    hq = np.clip(photo(6, width=160, height=128), 40, 200)
    strength = {"sigma": 9.0} if kind is GaussianNoiseParams else {"scale": 0.8}
    drawn = DegradationParams(scale=1, operations=(kind(gray=gray, seed=1, **strength),))
    strengths = [
        np.std(path(hq, drawn) - hq / 255) for path in (degrade, degrade_numpy, degrade_torch)
    ]
    assert np.allclose(strengths, strengths[0], rtol=0.05)

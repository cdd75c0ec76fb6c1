"""Each metric by its name and convention, against plain renderings of what the field computes."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data
from skimage.metrics import structural_similarity

from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.metrics.metric import NotMeasurable, PictureMetric
from training.settings.evaluation import PRESETS, EvaluationSettings, MetricName, Preset


def _pictures() -> tuple[np.ndarray, np.ndarray]:
    """An original, and the same with noise."""
    original = data.astronaut()[100:160, 180:250]
    noise = np.random.default_rng(0).normal(0, 30, original.shape)
    return original, (original + noise).clip(0, 255).astype(np.uint8)


def _named(preset: Preset, *names: MetricName) -> dict[str, PictureMetric]:
    return {one.name: one for one in find_metrics(names, PRESETS[preset]).of_pictures}


def _y(picture: np.ndarray) -> np.ndarray:
    red, green, blue = picture.astype(float).transpose(2, 0, 1)
    return 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255


def _decibels(original: np.ndarray, result: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((original - result) ** 2)))


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("plain", ["psnr_y", "ssim_y", "niqe"]),
        ("paper", ["psnr_y", "ssim_y_pyiqa", "niqe"]),
        ("basicsr", ["psnr_y_cropscale", "ssim_y_cropscale", "niqe_cropscale"]),
        ("pyiqa", ["psnr_yiq", "ssim_yiq_pyiqa", "niqe_yiq"]),
    ],
)
def test_names_say_the_convention(preset: Preset, names: list[str]) -> None:
    assert list(_named(preset, "psnr_y", "ssim_y", "niqe"))[2:] == names


def test_psnr_of_luma_with_and_without_a_border() -> None:
    original, result = _pictures()
    both = _y(original), _y(result)
    plain = _named("plain", "psnr_y")["psnr_y"].value(result, original, scale=4)
    assert plain == pytest.approx(_decibels(*both), rel=1e-12)
    cropped = _named("basicsr", "psnr_y")["psnr_y_cropscale"].value(result, original, scale=4)
    inside = [y[4:-4, 4:-4] for y in both]
    assert cropped == pytest.approx(_decibels(inside[0], inside[1]), rel=1e-12) != plain
    yiq = _named("pyiqa", "psnr_y")["psnr_yiq"].value(result, original)
    weighted = [picture @ np.array([0.299, 0.587, 0.114]) for picture in (original, result)]
    assert yiq == pytest.approx(_decibels(weighted[0], weighted[1]), rel=1e-12)


def test_ssim_of_luma_is_that_of_scikit_image() -> None:
    original, result = _pictures()
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(_y(original), _y(result), data_range=255, **window)
    found = _named("plain", "ssim_y")["ssim_y"].value(result, original)
    assert found == pytest.approx(expected, abs=1e-12)


def test_ssim_as_pyiqa_takes_whole_levels_and_no_negative_contrast() -> None:
    original, result = _pictures()
    result = np.where(np.arange(70)[:, None] < 20, 255 - result, result).astype(np.uint8)
    x, y = (np.round(_y(one)) for one in (original, result))
    offsets = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(offsets, offsets) / offsets.sum() ** 2

    def mean(plane: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(plane, (11, 11))
        return np.einsum("ijkl,kl->ij", windows, weights)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    structure = (2 * (mean(x * y) - mx * my) + c2) / (
        mean(x * x) - mx**2 + mean(y * y) - my**2 + c2
    )
    assert structure.min() < 0
    light = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    found = _named("paper", "ssim_y")["ssim_y_pyiqa"].value(result, original)
    assert found == pytest.approx(float((light * structure.clip(min=0)).mean()), abs=1e-10)


def test_settings_beside_the_preset_win() -> None:
    settings = EvaluationSettings(photos="/photos", convention="pyiqa", border=3, luma="ycbcr")
    found = find_metrics(("psnr_y", "ssim_rgb"), settings.conventions()).of_pictures
    assert [one.name for one in found[2:]] == ["psnr_y_crop3", "ssim_rgb_pyiqa_crop3"]


def test_what_cannot_be_compared_says_why() -> None:
    original, result = _pictures()
    found = _named("basicsr", "psnr_y", "ssim_rgb")
    with pytest.raises(NotMeasurable, match="original of the same size"):
        found["psnr_y_cropscale"].value(result[1:], original)
    with pytest.raises(NotMeasurable, match="nothing inside a border of 30"):
        found["psnr_y_cropscale"].value(result, original, scale=30)
    with pytest.raises(NotMeasurable, match="20x10 is smaller than its window of 11"):
        found["ssim_rgb_cropscale"].value(result[:18, :28], original[:18, :28], scale=4)

"""Resizes and blurs in one pass equal the two done one after the other, by other libraries too."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
import torch
from PIL import Image
from scipy import ndimage

from datagen.degradation import kernels, resample
from datagen.degradation.kernels import Filter
from datagen.degradation.resize_matrix import resize_matrix
from datagen.degradation.settings import Interpolation

_MODES: tuple[Interpolation, ...] = (
    "nearest",
    "area",
    "bilinear",
    "bicubic",
    "bilinear_antialiased",
    "bicubic_antialiased",
)
_SIZES = [(1, 1), (5, 7), (133, 95), (260, 200)]
"""From 133 x 96: to one pixel, far down, along one side only, up."""
_PIXELS = (np.random.default_rng(0).random((96, 133, 3)) * 255).astype(np.float32)
_KERNEL = kernels.gaussian_kernel(13, sigma_x=2.1, sigma_y=0.8, theta=0.6)


def _in_one_pass(pixels: np.ndarray, size: tuple[int, int], mode: Interpolation) -> np.ndarray:
    vertical = resize_matrix(pixels.shape[0], size[1], mode)
    return resample._resampled(pixels, vertical, resize_matrix(pixels.shape[1], size[0], mode))


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("mode", _MODES[:4])
def test_matrices_are_opencvs_resize(size: tuple[int, int], mode: Interpolation) -> None:
    expected = resample.resized(_PIXELS, size, mode)
    assert np.abs(_in_one_pass(_PIXELS, size, mode) - expected).max() < 1e-3


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_antialiased_modes_are_pillows(kernel: str, size: tuple[int, int]) -> None:
    planes = [Image.fromarray(plane) for plane in np.moveaxis(_PIXELS, 2, 0)]
    filtered = Image.Resampling[kernel.upper()]
    expected = [np.asarray(plane.resize(size, filtered)) for plane in planes]
    mode: Interpolation = f"{kernel}_antialiased"  # type: ignore[assignment]
    found = resample.resized(_PIXELS, size, mode)
    assert np.abs(found - np.stack(expected, axis=2)).max() < 1e-3


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_is_torchs(size: tuple[int, int], mode: Interpolation) -> None:
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(_PIXELS).permute(2, 0, 1)[None],
        size=size[::-1],
        mode=mode,
        align_corners=False,
    )
    found = resample.resized(_PIXELS, size, mode)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() < 0.02


@pytest.mark.parametrize("size", _SIZES)
def test_nearest_takes_the_pixel_under_each_center(size: tuple[int, int]) -> None:
    y, x = np.mgrid[:96, :133].astype(np.float32)
    taken = resample.resized(np.stack([y, x, x], axis=2), size, "nearest")
    down = (np.arange(size[1]) + 0.5) * 96 / size[1] - 0.5
    across = (np.arange(size[0]) + 0.5) * 133 / size[0] - 0.5
    assert np.abs(taken[..., 0] - down[:, None]).max() < 0.501
    assert np.abs(taken[..., 1] - across[None]).max() < 0.501


@pytest.mark.parametrize("size", [(29, 23), (5, 7), (1, 1), (30, 12)])
def test_area_is_the_mean_over_each_outputs_part(size: tuple[int, int]) -> None:
    pixels = _PIXELS[:24, :30]
    found = resample.resized(pixels, size, "area")
    fine = np.repeat(np.repeat(pixels[..., 0].astype(np.float64), size[1], 0), size[0], 1)
    # Each pixel is repeated so often that every output covers whole cells: h H by w W of them.
    expected = fine.reshape(size[1], 24, size[0], 30).mean(axis=(1, 3))
    assert np.abs(found[..., 0] - expected).max() < 0.3  # OpenCV leaves out parts below 1/1000


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("mode", _MODES)
def test_blur_then_resize_equals_scipy(size: tuple[int, int], mode: Interpolation) -> None:
    blurred = ndimage.correlate(_PIXELS.astype(float), _KERNEL[..., None], mode="mirror")
    expected = resample.resized(blurred.astype(np.float32), size, mode)
    found = resample.blurred_and_resized(_PIXELS, Filter.of(_KERNEL), size, mode)
    assert np.abs(found - expected).max() < 0.03


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("mode", _MODES)
def test_resize_then_blur_equals_scipy(size: tuple[int, int], mode: Interpolation) -> None:
    large = resample.resized(_PIXELS, size, mode).astype(float)
    expected = ndimage.correlate(large, _KERNEL[..., None], mode="mirror")
    found = resample.resized_and_blurred(_PIXELS, size, mode, Filter.of(_KERNEL))
    assert np.abs(found - expected).max() < 0.06


@pytest.mark.parametrize("size", [(40, 30), (133, 96), (260, 200)])
def test_one_pass_and_two_steps_agree(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way the estimated costs choose, the pixels are the same."""
    blur, found = Filter.of(_KERNEL), []
    for cost in (0.0, 1e9):
        monkeypatch.setattr(resample, "_RESIZE_COST", cost)
        found.append(
            (
                resample.blurred_and_resized(_PIXELS, blur, size, "bilinear"),
                resample.resized_and_blurred(_PIXELS, size, "bilinear", blur),
            )
        )
    for one, other in zip(*found, strict=True):
        assert 0 < np.abs(one - other).max() < 0.03


def test_bytes_do_not_depend_on_threads() -> None:
    """OpenBLAS splits large products among threads, which changes their sums: ours stay small."""
    pixels = np.random.default_rng(1).random((512, 640, 3), dtype=np.float32)
    blur = Filter.of(_KERNEL)
    down = resize_matrix(512, 300, "area").after_blur(blur.columns)
    across = resize_matrix(640, 375, "area").after_blur(blur.rows)
    results = []
    for threads in (1, 2, 3, 8):
        with threadpoolctl.threadpool_limits(limits=threads, user_api="blas"):
            results.append(resample._resampled(pixels, down, across))
    assert all(np.array_equal(results[0], other) for other in results[1:])

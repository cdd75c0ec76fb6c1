"""PSNR and SSIM against scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from training.evaluation.metrics.fidelity import _convolved, _filtered, psnr, ssim


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, 40, 31, 3), dtype=np.uint8)
    originals[1] //= 4
    noise = rng.normal(0, [[[[1]]], [[[20]]], [[[60]]]], originals.shape)
    images = (originals + noise).clip(0, 255).astype(np.uint8)
    tensors = [torch.from_numpy(each).permute(0, 3, 1, 2) for each in (originals, images)]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = list(zip(originals, images, strict=True))
    expected = [peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
    assert psnr(*tensors).tolist() == pytest.approx(expected, rel=1e-12)
    expected = [
        structural_similarity(*pair, channel_axis=2, data_range=255, **window) for pair in pairs
    ]
    assert ssim(*tensors).tolist() == pytest.approx(expected, abs=1e-12)


def test_equal_images_have_no_error() -> None:
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    assert psnr(image, image).item() == float("inf")
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-12)


def test_the_window_of_a_gpu_and_that_of_a_cpu_give_the_same() -> None:
    images = torch.from_numpy(np.random.default_rng(2).uniform(0, 255, (2, 3, 30, 17)))
    weights = torch.arange(1.0, 12, dtype=torch.float64)
    torch.testing.assert_close(
        _filtered(images, weights), _convolved(images, weights), rtol=1e-12, atol=0
    )

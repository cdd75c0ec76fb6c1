"""How close restored images are to their originals: PSNR and SSIM, for each image of a batch.

Images are RGB or luma (B, C, H, W) in levels of 8 bits, whole: no border is cut. Sums are float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
"""Side of SSIM's Gaussian window, pixels; images must be at least as large."""
SIGMA = 1.5


def psnr(originals: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB, of the mean squared error over pixels and colors;
    infinite for equal images."""
    errors = (originals.double() - images.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / errors)


def ssim(originals: Tensor, images: Tensor, *, least_contrast: float = -math.inf) -> Tensor:
    """Structural similarity (B,), the mean over pixels and colors (Wang et al. 2004): Gaussian
    window of 11 pixels and sigma 1.5, population variances, K1 = 0.01, K2 = 0.03.

    Args:
        least_contrast: of the contrast and structure part at every pixel; 0 in pyiqa.
    """
    x, y = originals.double(), images.double()
    maps = _blurred(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = maps.chunk(5)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * contrast.clamp(min=least_contrast)).flatten(1).mean(dim=1)


def _blurred(images: Tensor) -> Tensor:
    """The Gaussian window's weighted mean at every pixel that it fits around."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return (_filtered if images.is_cpu else _convolved)(images, weights.to(images.device))


def _filtered(images: Tensor, weights: Tensor) -> Tensor:
    """By OpenCV: five times as fast as PyTorch's convolution of float64 on a CPU."""
    kernel, edge = weights.numpy(), WINDOW // 2
    planes = [
        cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel)[edge:-edge, edge:-edge]
        for plane in images.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).unflatten(0, images.shape[:2])


def _convolved(images: Tensor, weights: Tensor) -> Tensor:
    planes = images.flatten(0, 1)[None]  # one group of channels each: ten times as fast as a batch
    vertical = weights.view(1, 1, -1, 1).expand(planes.shape[1], -1, -1, -1)
    planes = functional.conv2d(planes, vertical, groups=planes.shape[1])
    planes = functional.conv2d(planes, vertical.transpose(2, 3), groups=planes.shape[1])
    return planes.view(*images.shape[:2], *planes.shape[2:])


class Quality(NamedTuple):
    """How close a restored photo is to its original."""

    psnr: float
    ssim: float


def quality(original: np.ndarray, result: np.ndarray) -> Quality:
    """Of two images, RGB uint8 (H, W, 3)."""
    both = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None] for image in (original, result)]
    return Quality(float(psnr(*both)), float(ssim(*both)))

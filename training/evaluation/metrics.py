"""How close restored images are to their originals: PSNR and SSIM, for each image of a batch.

Images are RGB, uint8 (B, 3, H, W), whole: no border is cut and no luma is taken. Sums are float64.
"""

from __future__ import annotations

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


def ssim(originals: Tensor, images: Tensor) -> Tensor:
    """Structural similarity (B,), the mean over pixels and colors (Wang et al. 2004): Gaussian
    window of 11 pixels and sigma 1.5, population variances, K1 = 0.01, K2 = 0.03."""
    x, y = originals.double(), images.double()
    maps = _blurred(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = maps.chunk(5)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * contrast).flatten(1).mean(dim=1)


def _blurred(images: Tensor) -> Tensor:
    """The Gaussian window's weighted mean at every pixel that it fits around."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=images.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    planes = images.flatten(0, 1)[None]  # one group of channels each: ten times as fast as a batch
    vertical = weights.view(1, 1, -1, 1).expand(planes.shape[1], -1, -1, -1)
    planes = functional.conv2d(planes, vertical, groups=planes.shape[1])
    planes = functional.conv2d(planes, vertical.transpose(2, 3), groups=planes.shape[1])
    return planes.view(*images.shape[:2], *planes.shape[2:])

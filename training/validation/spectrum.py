"""How much detail images have: their power in bands of spatial frequency."""

from __future__ import annotations

import torch
from torch import Tensor

BANDS = 32
"""Rings of equal width from frequency 0 to half the sampling rate."""
_LUMA = (0.299, 0.587, 0.114)


def power_spectrum(images: Tensor) -> Tensor:
    """Mean power of the luma in each band (B, BANDS), float64, for uint8 images (B, 3, H, W).

    A Hann window keeps the borders from counting as edges.
    """
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device)
    luma = torch.einsum("bchw,c->bhw", images.double() / 255, weights)
    luma = luma - luma.mean(dim=(1, 2), keepdim=True)
    height, width = luma.shape[1:]
    window = _hann(height, luma)[:, None] * _hann(width, luma)[None]
    power = torch.fft.rfft2(luma * window).abs().square() / window.square().sum()
    y, x = torch.fft.fftfreq(height).double(), torch.fft.rfftfreq(width).double()
    radius = (y[:, None] ** 2 + x[None] ** 2).sqrt().to(luma.device)
    band = (radius * 2 * BANDS).long()
    inside = band < BANDS
    sums = power.new_zeros(len(images), BANDS)
    sums.index_add_(1, band[inside], power[:, inside])
    return sums / torch.bincount(band[inside], minlength=BANDS).clamp(min=1)


def _hann(length: int, like: Tensor) -> Tensor:
    return torch.hann_window(length, periodic=False, dtype=like.dtype, device=like.device)

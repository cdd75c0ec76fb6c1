"""The coarse estimator g: latents of an LQ image to those of the mean of its HQ images.

Residual-in-residual dense blocks on the latent channels themselves (ESRGAN's, with SiLU).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.elir.collapsible import conv3x3

BLOCKS, DENSE_BLOCKS, CONVOLUTIONS = 3, 3, 5
GROWTH = 96
"""Channels that each convolution of a dense block adds, which the paper calls its width."""
RESIDUAL_SCALE = 0.2
START_GAIN = 1 + (1 + RESIDUAL_SCALE) ** BLOCKS
"""What an untrained one multiplies latents by, about: the cascade holds the identity, too."""
COARSE_REACH = BLOCKS * DENSE_BLOCKS * CONVOLUTIONS
"""Latents around one that decide about it: one for every 3x3."""


class DenseBlock(nn.Module):
    """Five convolutions, each on all channels before it; the last one gives what is added."""

    def __init__(self, channels: int, growth: int, expand: int | None) -> None:
        super().__init__()
        inner = CONVOLUTIONS - 1
        self.convs = nn.ModuleList(
            conv3x3(channels + i * growth, growth if i < inner else channels, expand)
            for i in range(CONVOLUTIONS)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.convs[:-1]:
            features = torch.cat([features, functional.silu(conv(features))], dim=1)
        return x + RESIDUAL_SCALE * self.convs[-1](features)


class CoarseEstimator(nn.Module):
    """z (B, C, h, w) -> z + cascade(z), alike."""

    def __init__(self, channels: int, growth: int = GROWTH, *, expand: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(DenseBlock(channels, growth, expand) for _ in range(DENSE_BLOCKS)))
            for _ in range(BLOCKS)
        )

    def forward(self, z: Tensor) -> Tensor:
        cascade = z.to(next(self.parameters()).dtype)
        for block in self.blocks:
            cascade = cascade + RESIDUAL_SCALE * block(cascade)
        return z + cascade.to(z.dtype)

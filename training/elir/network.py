"""ELIR's networks together, and among them the vector field v(z, t): a convolutional U-Net on
latents, without attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.elir.coarse_estimator import GROWTH, START_GAIN, CoarseEstimator
from training.elir.codec import CodecNetworks, tiny_codec, trainable_copy
from training.elir.collapsible import conv3x3

GROUPS = 32
TIME_FEATURES = 160
TIME_CHANNELS = 640
LATENT_MULTIPLE = 4
"""Latent sides must be multiples of it, as it halves them twice."""


def time_features(t: Tensor) -> Tensor:
    """[cos, sin] of 1000 t 10000^(-i/79), i = 0..79: times (B,) -> (B, 160)."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / (half - 1)
    angles = 1000 * t[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """Two convolutions behind norms, the time's embedding between them, around a 1x1."""

    def __init__(self, cin: int, cout: int, expand: int | None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, cin)
        self.conv1 = conv3x3(cin, cout, expand)
        self.time = nn.Linear(TIME_CHANNELS, cout)
        self.norm2 = nn.GroupNorm(GROUPS, cout)
        self.conv2 = conv3x3(cout, cout, expand)
        self.skip = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = hidden + self.time(functional.silu(time))[..., None, None]
        return self.conv2(functional.silu(self.norm2(hidden))) + self.skip(x)


class VectorField(nn.Module):
    """v(z, t): latents (B, C, h, w) at times (B,) -> their velocity, alike.

    Two residual blocks at each of two sizes going down and up again, `middle_blocks` below them.
    """

    def __init__(
        self, channels: int, width: int, middle_blocks: int, *, expand: int | None
    ) -> None:
        super().__init__()
        c1, c2, c4 = width, 2 * width, 4 * width
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, TIME_CHANNELS),
            nn.SiLU(),
            nn.Linear(TIME_CHANNELS, TIME_CHANNELS),
        )
        self.first = nn.Conv2d(channels, c1, 1)
        self.down = nn.ModuleList(Residual(c, c, expand) for c in (c1, c1, c2, c2))
        self.shrink = nn.ModuleList(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1) for c in (c1, c2))
        self.middle = nn.ModuleList(Residual(c4, c4, expand) for _ in range(middle_blocks))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1) for c in (c2, c1)
        )
        self.up = nn.ModuleList(Residual(2 * c, c, expand) for c in (c2, c2, c1, c1))
        self.norm = nn.GroupNorm(GROUPS, c1)
        self.conv = conv3x3(c1, c1, expand)
        self.last = nn.Conv2d(c1, channels, 1)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        dtype = self.first.weight.dtype
        time = self.time(time_features(t).to(dtype))
        x, skips = self.first(z.to(dtype)), []
        for i, block in enumerate(self.down):
            x = block(x, time)
            skips.append(x)
            if i % 2:
                x = self.shrink[i // 2](x)
        for block in self.middle:
            x = block(x, time)
        for i, block in enumerate(self.up):
            if i % 2 == 0:
                x = self.grow[i // 2](x)
            x = block(torch.cat([x, skips.pop()], dim=1), time)
        return self.last(self.conv(functional.silu(self.norm(x)))).to(z.dtype)


@dataclass
class Networks:
    """ELIR's five networks. Latents are (B, C, h, w), pixels (B, 3, H, W) in [0, 1]."""

    frozen_encoder: nn.Module
    """E0: HQ pixels to the latents that are to be reached. No gradient."""
    encoder: nn.Module
    """E: LQ pixels to latents, a trained copy of E0."""
    coarse: nn.Module
    """g: those latents to the mean of their HQ ones."""
    field: nn.Module
    """v(z, t) between noisy coarse latents (t = 0) and HQ ones (t = 1)."""
    decoder: nn.Module
    """D: latents to pixels. No gradient of its own."""


def build(
    width: int,
    middle_blocks: int,
    *,
    expand: int | None,
    codec: CodecNetworks | None = None,
    growth: int | None = GROWTH,
) -> Networks:
    """The networks with random weights.

    Args:
        width: channels of the field at its first size, a multiple of 32.
        middle_blocks: residual blocks of the field at its smallest size.
        expand: how much wider convolutions are trained; None makes them plain, as of a collapsed
            network.
        codec: TAESD3's architecture when None.
        growth: of the coarse estimator; None leaves it out, so that latents stay as they are.
    """
    codec = codec or tiny_codec()
    channels = codec.channels
    coarse: nn.Module = nn.Identity()
    gain = 1.0
    if growth is not None:
        coarse = CoarseEstimator(channels, growth, expand=expand)
        gain = 1 / START_GAIN  # training begins at g(E(y)) = E0(y), about
    return Networks(
        frozen_encoder=codec.encoder,
        encoder=trainable_copy(codec.encoder, gain),
        coarse=coarse,
        field=VectorField(channels, width, middle_blocks, expand=expand),
        decoder=codec.decoder,
    )

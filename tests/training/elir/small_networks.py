"""ELIR's networks at the smallest sizes that have every part, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.elir.codec import tiny_codec
from training.elir.network import Networks, build

CHANNELS = 4
TRAINED = ("encoder", "coarse", "field")


def small_networks(*, expand: int | None = 2, seed: int = 0) -> Networks:
    torch.manual_seed(seed)
    codec = tiny_codec(channels=CHANNELS, width=4)
    nets = build(32, 1, expand=expand, codec=codec, growth=3)
    for network in vars(nets).values():
        network.double()
    return nets


def double(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]

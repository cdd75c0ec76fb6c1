"""How far tensors of two devices are apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def distance(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in Euclidean norm, wherever the tensors are."""
    exact = expected.detach().cpu().double()
    return float((found.detach().cpu().double() - exact).norm() / exact.norm())


def gradient(module: nn.Module) -> Tensor:
    """All gradients of a module as one vector, in host memory."""
    parts = [p.grad.flatten().float().cpu() for p in module.parameters() if p.grad is not None]
    return torch.cat(parts)

"""Few-step inference with a flow map: LQ latents in, HQ latents out (eq. 13)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.flowmap.interpolant import Velocity, flow_map


@torch.no_grad()
def sample(u: Velocity, x1: Tensor, steps: int) -> Tensor:
    """x_{k+1} = X_{t_k, t_{k+1}}(x_k) over `steps` equal intervals from t = 1 to t = 0.

    Args:
        u: average velocity u(x, t, s).
        x1: LQ latents (B, C, h, w).
        steps: network evaluations (NFE), 1 or more.
    """
    x = x1
    grid = torch.linspace(1.0, 0.0, steps + 1).tolist()
    for start, end in zip(grid[:-1], grid[1:], strict=True):
        t, s = x.new_full((len(x),), start), x.new_full((len(x),), end)
        x = flow_map(u, x, t, s)
    return x

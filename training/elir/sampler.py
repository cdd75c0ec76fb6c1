"""Few Euler steps of a velocity, and with them LQ pixels to HQ pixels.

Time runs from 0 (LQ) to 1 (HQ). Pixels are (B, 3, H, W) in [0, 1], sides as the networks need them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.elir.objective import RestoringNetworks, Velocity


def euler_states(v: Velocity, z0: Tensor, steps: int) -> Iterator[Tensor]:
    """z after each of the steps z <- z + v(z, i/M) / M, i = 0..M-1."""
    z = z0
    for i in range(steps):
        t = torch.full((len(z),), i / steps, dtype=z.dtype, device=z.device)
        z = z + v(z, t) / steps
        yield z


def euler(v: Velocity, z0: Tensor, steps: int) -> Tensor:
    """z at t = 1; `z0` itself for no steps."""
    z = z0
    for state in euler_states(v, z0, steps):
        z = state
    return z


def restore(
    nets: RestoringNetworks, y: Tensor, noise: Tensor, sigma_s: float, steps: int
) -> Tensor:
    """HQ estimates of LQ pixels: clip(D(z), 0, 1), where z starts at g(E(y)) + σ_s noise.

    Args:
        noise: of the latents' shape, standard normal.
        steps: evaluations of the field; 0 shows the coarse estimate.
    """
    z = nets.coarse(nets.encoder(y)) + sigma_s * noise
    return nets.decoder(euler(nets.field, z, steps)).clamp(0, 1)

"""The adversarial losses on latents as pure functions of scores and of any u(x, t, s).

Scores have any shape; every patch counts alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.flowmap.interpolant import Velocity, flow_map


def generator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """E softplus(D(x0) - D(x0_hat)): the generator's relativistic pairing loss (RPGAN)."""
    return functional.softplus(real - fake).mean()


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """E softplus(D(x0_hat) - D(x0)): the discriminator's relativistic pairing loss (RPGAN)."""
    return functional.softplus(fake - real).mean()


def two_step_prediction(u: Velocity, x1: Tensor) -> Tensor:
    """x0_hat by the steps 1 -> 1/2 -> 0, with the state at 1/2 detached (eq. 13 with NFE 2).

    Two evaluations of u, the first without gradient.

    Args:
        u: average velocity u(x, t, s).
        x1: LQ latents (B, ...).
    """
    one, half, zero = (x1.new_full((len(x1),), time) for time in (1.0, 0.5, 0.0))
    with torch.no_grad():
        middle = flow_map(u, x1, one, half)
    return flow_map(u, middle, half, zero)

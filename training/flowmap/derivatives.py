"""Directional derivatives of any u(x, t, s), without gradient: exact in forward mode, or a
difference.

Knows no target and no network; attention is told which kernel to use only while it is derived.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.flowmap.interpolant import Velocity
from training.settings.objective import DIFFERENCE_STEP

Point = tuple[Tensor, Tensor, Tensor]
"""(x, t, s), or a direction in their space."""


class Derivative(Protocol):
    """u(x, t, s) and its derivative along (dx, dt, ds), both shaped as u and detached."""

    def __call__(self, u: Velocity, point: Point, along: Point) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def forward_mode(u: Velocity, point: Point, along: Point) -> tuple[Tensor, Tensor]:
    """One forward-mode evaluation (a JVP), at about twice the cost of u.

    The fused attention kernels have no forward derivative; the MATH one has.
    """
    with sdpa_kernel(SDPBackend.MATH):
        evaluated = torch.func.jvp(u, point, along)
    return evaluated[0].detach(), evaluated[1].detach()


@torch.no_grad()
def central_difference(u: Velocity, point: Point, along: Point) -> tuple[Tensor, Tensor]:
    """(u(p + h d) - u(p - h d)) / 2h for p = (x, t, s), d = (dx, dt, ds); needs float32.

    Two evaluations. The value returned is the mean of both, u up to O(h^2). Times may leave [0, 1]
    by h, where u is defined as well.
    """
    ahead, behind = (
        u(*(a + sign * DIFFERENCE_STEP * d for a, d in zip(point, along, strict=True)))
        for sign in (1, -1)
    )
    return (ahead + behind) / 2, (ahead - behind) / (2 * DIFFERENCE_STEP)

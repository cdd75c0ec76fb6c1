"""Regression targets of the flow-map objectives as pure functions of tensors and any u(x, t, s).

Shapes: x (B, ...), times (B,). Every target is detached. Knows no network, no conditions and no
    weighting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.interpolant import Velocity, flow_map


def flow_matching_target(x0: Tensor, x1: Tensor) -> Tensor:
    """v = x1 - x0, the conditional velocity of the linear interpolant (eq. 3)."""
    return (x1 - x0).detach()


@torch.no_grad()
def shortcut_target(
    u: Velocity, x_t: Tensor, t: Tensor, s: Tensor, *, fraction: float = 0.5
) -> Tensor:
    """SSD (eq. 22): one step from t to s must equal two, t to m to s.

    m = t - fraction (t - s); target = fraction u(x_t, t, m) + (1 - fraction) u(X_{t,m}(x_t), m, s).
    Two evaluations of u.
    """
    m = t - fraction * (t - s)
    first = u(x_t, t, m)
    x_m = flow_map(lambda *_: first, x_t, t, m)
    return fraction * first + (1 - fraction) * u(x_m, m, s)


def grounded(u: Velocity, finest: float) -> Velocity:
    """u with every interval narrower than `finest` evaluated as instantaneous, u(x, t, t).

    The foot of the SSD ladder: L_FM trains s = t only and L_SD no interval below 2^-K, so the half
        steps of the finest level would ask for values that nothing trains. With it the ladder is
        exactly Euler with 2^(K+1) steps.
    """

    def evaluate(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        # Half of `finest` separates the two widths that occur, finest and finest / 2, from
        # rounding.
        return u(x, t, torch.where(t - s < 0.75 * finest, t, s))

    return evaluate

"""Regression targets of the flow-map objectives as pure functions of tensors and any u(x, t, s).

Shapes: x (B, ...), times (B,). Every target is detached.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.flowmap.derivatives import directional_derivative
from training.flowmap.interpolant import Velocity, flow_map, per_sample


def flow_matching_target(x0: Tensor, x1: Tensor) -> Tensor:
    """v = x1 - x0, the conditional velocity of the linear interpolant (eq. 3)."""
    return (x1 - x0).detach()


@torch.no_grad()
def shortcut_target(u: Velocity, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """SSD (eq. 22): one step from t to s must equal two, t to m to s.

    m = t - (t - s) / 2; target = (u(x_t, t, m) + u(X_{t,m}(x_t), m, s)) / 2. Two evaluations of u.
    """
    m = t - 0.5 * (t - s)
    first = u(x_t, t, m)
    x_m = flow_map(lambda *_: first, x_t, t, m)
    return 0.5 * first + 0.5 * u(x_m, m, s)


@torch.no_grad()
def eulerian_target(u: Velocity, x_t: Tensor, t: Tensor, s: Tensor, velocity: Tensor) -> Tensor:
    """ESD (eq. 21, as MeanFlow): velocity - (t - s) (d_t u + grad_x u . velocity) at (x_t, t, s).

    Args:
        velocity: (B, ...) of the path at (x_t, t): x1 - x0, or the guided one.
    """
    along = (velocity, torch.ones_like(t), torch.zeros_like(s))
    _, slope = directional_derivative(u, (x_t, t, s), along)
    return velocity - per_sample(t - s, x_t) * slope


@torch.no_grad()
def lagrangian_target(
    u: Velocity,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    velocity_at_s: Tensor | Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """LSD (eq. 20): velocity_at_s + (t - s) d_s u(x_t, t, s).

    Args:
        velocity_at_s: the velocity where the step ends: a tensor (B, ...), or a function of
            (X_{t,s}(x_t), s) that gives it. The derivative yields u(x_t, t, s) as well, so the
            function costs no evaluation but its own.
    """
    along = (torch.zeros_like(x_t), torch.zeros_like(t), torch.ones_like(s))
    value, slope = directional_derivative(u, (x_t, t, s), along)
    if not isinstance(velocity_at_s, Tensor):
        velocity_at_s = velocity_at_s(flow_map(lambda *_: value, x_t, t, s), s)
    return velocity_at_s + per_sample(t - s, x_t) * slope


@torch.no_grad()
def guided_velocity(velocity: Tensor, negative_velocity: Tensor, w: Tensor | float) -> Tensor:
    """v^w = w v + (1 - w) v(c-) (eq. 5 and 15); w is one number or (B,), and 1 is no guidance."""
    weight = per_sample(torch.as_tensor(w, dtype=velocity.dtype, device=velocity.device), velocity)
    return weight * velocity + (1 - weight) * negative_velocity


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

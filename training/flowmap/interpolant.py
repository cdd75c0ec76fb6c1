"""The path between HQ and LQ latents, its times, and the flow map that travels it.

One convention for the whole code base (the paper's): x0 is the HQ latent at t = 0, x1 the LQ latent
resized to HQ size at t = 1, x_t = (1 - t) x0 + t x1, and 0 <= s <= t <= 1 with times of shape (B,).
A model is the average velocity u(x, t, s); u(x, t, t) is the instantaneous one. Inference runs from
t = 1 back to t = 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x, t, s): x (B, ...), times (B,) -> average velocity (B, ...)."""

TimeKind = Literal["shortcut", "uniform"]


class Times(NamedTuple):
    """Time pairs of a batch, each (B,)."""

    t: Tensor
    s: Tensor
    is_flow_matching: Tensor
    """Boolean: s = t and the sample trains L_FM; otherwise it trains L_SD."""

    def at(self, rows: Tensor) -> Times:
        return Times(*(each[rows] for each in self))

    def on(self, device: torch.device) -> Times:
        """t and s on `device`; `is_flow_matching` stays in host memory, where rows are chosen."""
        t, s = (times.to(device, non_blocking=True) for times in (self.t, self.s))
        return Times(t, s, self.is_flow_matching)


def per_sample(times: Tensor, like: Tensor) -> Tensor:
    """Times (B,) reshaped to (B, 1, ...) so that they scale each sample of `like`."""
    return times.reshape(-1, *[1] * (like.ndim - 1))


def select_rows(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows], with rows in host memory; the host does not wait for the values' device."""
    return values[rows.to(values.device, non_blocking=True)]


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t x1 for x0, x1 (B, ...) and t (B,)."""
    t = per_sample(t, x0)
    return (1 - t) * x0 + t * x1


def flow_map(u: Velocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """X_{t,s}(x) = x - (t - s) u(x, t, s): carries x (B, ...) from time t to time s <= t."""
    return x - per_sample(t - s, x) * u(x, t, s)


@torch.no_grad()
def sample(u: Velocity, x1: Tensor, steps: int) -> Tensor:
    """Few-step inference (eq. 13): x_{k+1} = X_{t_k, t_{k+1}}(x_k) over equal intervals from t = 1
    to t = 0, from LQ latents x1 (B, C, h, w). A step is a network evaluation (NFE)."""
    x = x1
    for start, end in intervals(steps):
        x = flow_map(u, x, x.new_full((len(x),), start), x.new_full((len(x),), end))
    return x


def intervals(steps: int) -> Iterator[tuple[float, float]]:
    """From which time to which each step goes."""
    return itertools.pairwise(torch.linspace(1.0, 0.0, steps + 1).tolist())


def sample_times(
    n: int,
    *,
    levels: int,
    flow_matching_fraction: float,
    kind: TimeKind,
    generator: torch.Generator,
) -> Times:
    """Draws n time pairs on the dyadic grids T_k of 2^k intervals, k uniform in 0..levels.

    L_FM pairs have t uniform on T_k and s = t. L_SD pairs have, for kind `shortcut`, t uniform on
    T_k without 0 and s = t - 2^-k; for kind `uniform`, two different points of T_k. The share is
    kept inside the batch: n * share samples train L_FM, a fractional count being rounded up or down
    at random so that its mean is exact. Times are float32, in random order, on the generator's
    device: the host's, as the host must know which samples train what.
    """
    device = generator.device
    rand = torch.rand(4, n, generator=generator, device=device, dtype=torch.float64)
    coin = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    count = int(torch.floor(n * flow_matching_fraction + coin).clamp(max=n))
    order = torch.randperm(n, generator=generator, device=device)
    is_flow_matching = order < count

    intervals = 2.0 ** torch.floor(rand[0] * (levels + 1)).clamp(max=levels)
    anywhere = torch.floor(rand[1] * (intervals + 1)).clamp(max=intervals)
    if kind == "shortcut":
        start = 1 + torch.floor(rand[2] * intervals).clamp(max=intervals - 1)
        end = start - 1
    else:
        # A second point different from the first: skip over it.
        second = torch.floor(rand[2] * intervals).clamp(max=intervals - 1)
        second = second + (second >= anywhere)
        start, end = torch.maximum(anywhere, second), torch.minimum(anywhere, second)
    t = torch.where(is_flow_matching, anywhere, start) / intervals
    s = torch.where(is_flow_matching, anywhere, end) / intervals
    return Times(t.float(), s.float(), is_flow_matching)

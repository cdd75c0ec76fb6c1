"""ELIR's losses: latent consistency flow matching in segments, beside a coarse and a pixel error.

Pure functions of any v(z, t), in the paper's own direction of time (arXiv 2502.03500): t = 0 is LQ,
t = 1 is HQ. Times are (B,), latents (B, C, h, w), pixels (B, 3, H, W) in [0, 1], of any float type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(z, t)."""
OneArgument = Callable[[Tensor], Tensor]
"""A network of pixels or latents alone."""
Flow = Literal["latent_consistency", "flow_matching", "none"]
"""How the field is trained: as the paper does, by plain flow matching, or not at all."""


class RestoringNetworks(Protocol):
    """Callables that make HQ of LQ; `training/elir/network.py` has the real ones."""

    @property
    def encoder(self) -> OneArgument: ...
    @property
    def coarse(self) -> OneArgument: ...
    @property
    def field(self) -> Velocity: ...
    @property
    def decoder(self) -> OneArgument: ...


class ElirNetworks(RestoringNetworks, Protocol):
    """And what encodes HQ in training."""

    @property
    def frozen_encoder(self) -> OneArgument: ...


class ElirWeights(Protocol):
    """The numbers of the losses."""

    @property
    def segments(self) -> int:
        """K: the field may jump between as many segments of time."""

    @property
    def time_step(self) -> float:
        """Δt between the two times that are made consistent."""

    @property
    def alpha(self) -> float:
        """Weight of the velocities' difference."""

    @property
    def beta(self) -> float:
        """Weight of the pixel error; 0 does not decode at all."""

    @property
    def sigma_min(self) -> float:
        """How much of z0 is left at t = 1."""

    @property
    def sigma_s(self) -> float:
        """Standard deviation of the noise on the coarse latents."""


@dataclass(frozen=True)
class Consistency:
    """Latent consistency of a batch; only `f`, `v_t` and `loss` have a gradient."""

    f: Tensor
    """z_t carried to the end of its segment by v(z_t, t)."""
    target: Tensor
    """What f should be: z_r carried there by v(z_r, r), or the path's own point."""
    v_t: Tensor
    v_r: Tensor
    end: Tensor
    """Of each sample's segment (B,)."""
    loss: Tensor
    """Scalar."""
    past_end: Tensor
    """Whether r is past the segment's end (B,)."""

    @property
    def consistency(self) -> Tensor:
        """Squared error of each sample's f (B,)."""
        return (self.f - self.target).square().flatten(1).mean(dim=1)

    @property
    def velocity(self) -> Tensor:
        """Squared difference of each sample's velocities (B,)."""
        return (self.v_t - self.v_r).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class ElirLosses:
    """Scalars with gradient; an error that is not computed is 0."""

    l2: Tensor
    lcfm: Tensor
    """Of flow matching where that takes its place."""
    mse: Tensor
    total: Tensor
    consistency: Consistency | None
    """The parts of `lcfm`; None without it."""


def sample_times(n: int, time_step: float, *, generator: torch.Generator) -> Tensor:
    """t ~ U[0, 1 - Δt) of n samples, so that t + Δt is a time, too."""
    return (1 - time_step) * torch.rand(n, generator=generator, device=generator.device)


def segment_ends(t: Tensor, segments: int) -> Tensor:
    """e(t) = ceil(tK) / K, at least 1/K: where the segment of t ends."""
    # A rounded k/K times K may come out above k, which would be the next segment.
    within_rounding = 1 - 2 * torch.finfo(t.dtype).eps
    return (t * segments * within_rounding).ceil().clamp(min=1) / segments


def interpolant(z0: Tensor, z1: Tensor, t: Tensor, sigma_min: float) -> Tensor:
    """z_t = t z1 + (1 - (1 - σ_min) t) z0."""
    t = _beside(t, z0)
    return t * z1 + (1 - (1 - sigma_min) * t) * z0


def latent_consistency(
    v: Velocity,
    z0: Tensor,
    z1: Tensor,
    t: Tensor,
    *,
    segments: int,
    time_step: float,
    alpha: float,
    sigma_min: float,
) -> Consistency:
    """mean (f - f')² + α mean (v(z_t, t) - v(z_r, r))², where f' and v(z_r, r) have no gradient."""
    r = (t + time_step).clamp(max=1)
    end = segment_ends(t, segments)
    z_t = interpolant(z0, z1, t, sigma_min)
    z_r = interpolant(z0, z1, r, sigma_min)
    v_t = v(z_t, t)
    with torch.no_grad():
        v_r = v(z_r, r)
        past_end = r >= end
        carried = z_r + _beside(end - r, z_r) * v_r
        own_point = interpolant(z0, z1, end, sigma_min)
        target = torch.where(past_end.view(-1, *[1] * (z_r.ndim - 1)), own_point, carried)
    f = z_t + _beside(end - t, z_t) * v_t
    loss = (f - target).square().mean() + alpha * (v_t - v_r).square().mean()
    return Consistency(f, target, v_t, v_r, end, loss, past_end)


def endpoint(v: Velocity, f: Tensor, end: Tensor) -> Tensor:
    """ẑ1: one Euler step from the segment's end to 1, whose velocity alone has a gradient."""
    f = f.detach()
    return f + _beside(1 - end, f) * v(f, end)


def flow_matching(
    v: Velocity, z0: Tensor, z1: Tensor, t: Tensor, sigma_min: float
) -> tuple[Tensor, Tensor]:
    """The loss of `flow_matching_loss`, and ẑ1: one Euler step from z_t to 1, with its gradient."""
    z_t = interpolant(z0, z1, t, sigma_min)
    v_t = v(z_t, t)
    slope = z1 - (1 - sigma_min) * z0
    return (v_t - slope).square().mean(), z_t + _beside(1 - t, z_t) * v_t


def flow_matching_loss(v: Velocity, z0: Tensor, z1: Tensor, t: Tensor, sigma_min: float) -> Tensor:
    """mean (v(z_t, t) - u)², where u is the path's slope, the same at all times."""
    return flow_matching(v, z0, z1, t, sigma_min)[0]


def elir_losses(
    nets: ElirNetworks,
    x: Tensor,
    y: Tensor,
    t: Tensor,
    noise: Tensor,
    settings: ElirWeights,
    *,
    flow: Flow = "latent_consistency",
) -> ElirLosses:
    """L2 + (1 - β) LCFM + β MSE of a batch.

    L2 trains encoder and coarse estimator only, LCFM and MSE the field only, MSE only where the
    segment does not end at 1.

    Args:
        x, y: HQ and LQ pixels (B, 3, H, W).
        t: times (B,); for flow matching all of [0, 1), that is of `time_step` 0.
        noise: of the shape of the latents, standard normal.
        flow: how the field is trained, for ablations; "none" leaves L2 alone.
    """
    coarse = nets.coarse(nets.encoder(y))
    with torch.no_grad():
        z1 = nets.frozen_encoder(x)
    l2 = (coarse - z1).square().mean()
    zero = torch.zeros_like(l2)
    if flow == "none":
        return ElirLosses(l2, zero, zero, l2, None)
    z0 = coarse.detach() + settings.sigma_s * noise
    parts, mse = None, zero
    if flow == "flow_matching":
        lcfm, estimate = flow_matching(nets.field, z0, z1, t, settings.sigma_min)
        if settings.beta:
            mse = (x - nets.decoder(estimate)).square().mean()
    else:
        parts = latent_consistency(
            nets.field,
            z0,
            z1,
            t,
            segments=settings.segments,
            time_step=settings.time_step,
            alpha=settings.alpha,
            sigma_min=settings.sigma_min,
        )
        lcfm = parts.loss
        if settings.beta:
            mse = _pixel_error(nets, x, parts)
    total = l2 + (1 - settings.beta) * lcfm + settings.beta * mse
    return ElirLosses(l2, lcfm, mse, total, parts)


def _pixel_error(nets: ElirNetworks, x: Tensor, parts: Consistency) -> Tensor:
    """mean (x - D(ẑ1))². In the last segment ẑ1 is f itself and has no gradient: no velocity is
    needed there, nor the decoder's activations."""
    before, squares = parts.end < 1, x.new_zeros(())
    if before.any():
        estimate = endpoint(nets.field, parts.f[before], parts.end[before])
        squares = squares + (x[before] - nets.decoder(estimate)).square().sum()
    if not before.all():
        with torch.no_grad():
            decoded = nets.decoder(parts.f[~before])
        squares = squares + (x[~before] - decoded).square().sum()
    return squares / x.numel()


def _beside(times: Tensor, z: Tensor) -> Tensor:
    """Times (B,), to be multiplied with z (B, ...)."""
    return times.to(z).view(-1, *[1] * (z.ndim - 1))

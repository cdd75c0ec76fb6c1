"""The flow-map objectives: a batch of latents to a loss, L_FM + L_SD in one student forward (eq.
12).

The training loop calls `losses = objective(model, batch, generator)` and knows nothing else about a
method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.data.loader import Batch
from training.flowmap.conditions import Network, draw_conditions
from training.flowmap.interpolant import (
    TimeKind,
    Times,
    chosen,
    interpolate,
    per_sample,
    sample_times,
)
from training.flowmap.network import FlowMapNet
from training.flowmap.targets import flow_matching_target
from training.flowmap.teacher import Teacher
from training.flowmap.time_maps import time_map
from training.flowmap.weighting import DynamicWeighting, weighted_loss
from training.losses.perceptual import PatchRegulariser
from training.settings.objective import ObjectiveSettings, SelfDistillation

LOSS_NAMES = ("total", "fm", "sd", "perceptual", "weighting")


@dataclass(frozen=True)
class Losses:
    """The loss to minimise and what is reported of it."""

    total: Tensor
    """Scalar with gradient."""
    sums: Tensor
    """(n, 2) float64 without gradient: the sum over samples and the number of samples behind each
    of LOSS_NAMES, or of a trainer's own names. Adding them over micro batches and workers gives
    exact means, also where a term had no sample."""
    over_times: Tensor
    """(2, n, n): L(t, s), the squared error before weighting, as a `time_map`."""


class TrainedModel(nn.Module):
    """Everything a stage optimises: the network and, if the recipe asks for it, the weighting."""

    def __init__(
        self,
        net: FlowMapNet,
        weighting: DynamicWeighting | None,
        *,
        compiled: Literal["none", "student", "all"] = "none",
    ) -> None:
        super().__init__()
        self.net = net
        self.weighting = weighting
        # In a tuple, where torch does not take it for another submodule with the same weights.
        fast: Network = net if compiled == "none" else torch.compile(net.forward)
        self._passes: tuple[Network, Network] = (fast, fast if compiled == "all" else net)

    @property
    def student(self) -> Network:
        """The network as it is trained: u(x, t, s, prompt, w)."""
        return self._passes[0]

    @property
    def teacher(self) -> Network:
        """The same network, as it makes its own targets."""
        return self._passes[1]

    def forward(
        self,
        objective: Callable[[TrainedModel, Batch, torch.Generator], Losses],
        batch: Batch,
        generator: torch.Generator,
    ) -> Losses:
        """Runs the objective inside this module's forward, where DeepSpeed's hooks expect it."""
        return objective(self, batch, generator)


class FlowMapObjective:
    """L_FM and, under self-distillation, L_SD against the model's own detached targets."""

    def __init__(
        self,
        settings: ObjectiveSettings,
        *,
        regulariser: PatchRegulariser | None,
        in_lockstep: bool = False,
    ) -> None:
        """
        Args:
            in_lockstep: whether all workers must evaluate the network equally often (ZeRO-3).
        """
        self.settings = settings
        self.regulariser = regulariser
        self.teacher = Teacher(settings, in_lockstep)

    def __call__(self, model: TrainedModel, batch: Batch, generator: torch.Generator) -> Losses:
        """The loss of one micro batch; all its draws come from `generator`, which is the host's."""
        times = self._times(len(batch.hq), generator).on(batch.hq.device)
        conditions = draw_conditions(self.settings.guidance, len(batch.hq), generator)
        there = conditions.on(batch.hq.device)
        x0 = batch.hq
        if self.settings.guidance is not None:
            x0 = torch.where(per_sample(there.is_negative, x0), batch.require_neg(), x0)
        x_t = interpolate(x0, batch.lq, times.t)
        v = flow_matching_target(x0, batch.lq)
        target = self.teacher.targets(model.teacher, x_t, v, times, conditions)

        t, s = times.t, times.s
        u = model.student(x_t, t, s, there.prompt, there.w)
        squared = (u - target).square().flatten(1).mean(dim=1)
        phi = None if model.weighting is None else model.weighting(t, s)
        total = squared.mean() if phi is None else weighted_loss(squared, phi)
        perceptual = None
        if self.regulariser is not None:
            # A negative sample is not after the HQ pixels.
            rows = (~conditions.is_negative).nonzero().squeeze(1)
            x0_prediction = chosen(x_t - per_sample(t, x_t) * u, rows)
            pixels = chosen(batch.require_pixels(), rows)
            perceptual = self.regulariser(x0_prediction, pixels, chosen(t, rows), generator)
            total = total + perceptual.sum() / len(squared)
        sums = _sums(total, squared, times.is_flow_matching, perceptual, phi)
        return Losses(total, sums, time_map(t, s, squared))

    def _times(self, n: int, generator: torch.Generator) -> Times:
        kind: TimeKind = "shortcut"
        share = 1.0
        if isinstance(self.settings, SelfDistillation):
            share = self.settings.flow_matching_fraction
            kind = "uniform" if self.settings.differentiates else "shortcut"
        return sample_times(
            n,
            levels=self.settings.time_grid_levels,
            flow_matching_fraction=share,
            kind=kind,
            generator=generator,
        )


@torch.no_grad()
def _sums(
    total: Tensor, squared: Tensor, is_fm: Tensor, perceptual: Tensor | None, phi: Tensor | None
) -> Tensor:
    """`Losses.sums`; a term that the recipe leaves out counts no sample, so it is not reported."""
    nothing = squared[:0]
    terms = (
        total.expand(len(squared)),
        *(chosen(squared, one.nonzero().squeeze(1)) for one in (is_fm, ~is_fm)),
        nothing if perceptual is None else perceptual,
        nothing if phi is None else phi,
    )
    sums = torch.stack([term.sum() for term in terms])
    counts = torch.tensor([len(term) for term in terms], dtype=sums.dtype)
    return torch.stack([sums, counts.to(sums.device, non_blocking=True)], dim=1).double()

"""The flow-map objectives: a batch of latents to a loss, L_FM + L_SD in one student forward
(eq. 12), and the loss's dynamic weighting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

from training.data.loader import Batch
from training.flowmap.conditions import Network, draw_conditions
from training.flowmap.interpolant import (
    TimeKind,
    Times,
    interpolate,
    per_sample,
    sample_times,
    select_rows,
)
from training.flowmap.network import FlowMapNet
from training.flowmap.targets import flow_matching_target
from training.flowmap.teacher import Teacher
from training.flowmap.time_maps import MeanTimeMap
from training.losses.perceptual import PatchPerceptualLoss
from training.settings.objective import FlowMapObjectiveSettings, SelfDistillation
from training.trainer import Losses, StageModel, Term

TOTAL, FM, SD = "loss/total", "loss/fm", "loss/sd"
PERCEPTUAL, WEIGHTING = "loss/perceptual", "loss/weighting"
TIME_SCALE = 1000.0
"""Times enter the embeddings as 1000 t, so that neighbors on the finest grid differ; no derivative
in time is ever taken of phi."""


class DynamicWeighting(nn.Module):
    """phi(t, s), which weighs the loss over times (FlowMapSR eq. 19, after EDM2): two sinusoidal
    embeddings, then 512 -> hidden -> 1; zero at the start."""

    def __init__(self, *, channels: int = 256, hidden: int = 128) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Linear(2 * channels, hidden)
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        """t, s (B,) -> phi (B,), float32."""
        embedding = torch.cat(
            [get_timestep_embedding(TIME_SCALE * times, self.channels) for times in (t, s)], dim=1
        )
        hidden = functional.silu(self.hidden(embedding.to(self.hidden.weight.dtype)))
        return self.last(hidden).squeeze(1).float()


def weighted_loss(squared: Tensor, log_weight: Tensor) -> Tensor:
    """E[exp(-phi) L + phi] for losses (B,) and phi (B,); least at phi = log E[L]."""
    return (torch.exp(-log_weight) * squared + log_weight).mean()


class FlowMapStageModel(StageModel):
    """The network and, if the recipe asks for it, the weighting of its loss."""

    net: FlowMapNet

    def __init__(
        self,
        net: FlowMapNet,
        weighting: DynamicWeighting | None,
        *,
        compiled: Literal["none", "student", "all"] = "none",
    ) -> None:
        super().__init__(net)
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


class FlowMapObjective:
    """L_FM and, under self-distillation, L_SD against the model's own detached targets."""

    terms = (TOTAL, FM, SD, PERCEPTUAL, WEIGHTING)
    headline = TOTAL
    guarded = (FM, SD)
    """The squared errors before weighting. The total is no measure of divergence: it holds the
    logarithm of an error and passes through zero."""

    def __init__(
        self,
        settings: FlowMapObjectiveSettings,
        *,
        perceptual_loss: PatchPerceptualLoss | None,
        gathered_parameters: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.settings = settings
        self.perceptual_loss = perceptual_loss
        self.teacher = Teacher(settings, gathered_parameters)
        self.time_map = MeanTimeMap()
        """L(t, s), the squared error before weighting, since the last pictures."""

    def __call__(
        self, model: FlowMapStageModel, batch: Batch, generator: torch.Generator
    ) -> Losses:
        """The loss of one micro batch.

        All draws come from `generator`, which is the host's, and are made for the whole step: so a
        sample has the same ones however the step is divided.
        """
        mine = batch.micro.first + torch.arange(len(batch.hq))
        samples = batch.micro.of_step(len(batch.hq))
        times = self._times(samples, generator).at(mine).on(batch.hq.device)
        conditions = draw_conditions(self.settings.guidance, samples, generator).at(mine)
        device_conditions = conditions.on(batch.hq.device)
        x0 = batch.hq
        if self.settings.guidance is not None:
            negative = per_sample(device_conditions.is_negative, x0)
            x0 = torch.where(negative, batch.latents["neg"], x0)
        x_t = interpolate(x0, batch.lq, times.t)
        v = flow_matching_target(x0, batch.lq)
        target = self.teacher.targets(model.teacher, x_t, v, times, conditions)

        t, s = times.t, times.s
        u = model.student(x_t, t, s, device_conditions.prompt, device_conditions.w)
        squared = (u - target).square().flatten(1).mean(dim=1)
        phi = None if model.weighting is None else model.weighting(t, s)
        total = squared.mean() if phi is None else weighted_loss(squared, phi)
        perceptual = None
        if self.perceptual_loss is not None:
            # A negative sample is not after the HQ pixels.
            rows = (~conditions.is_negative).nonzero().squeeze(1)
            x0_prediction = select_rows(x_t - per_sample(t, x_t) * u, rows)
            assert batch.hq_pixels is not None, "asked for by the stage's batch_fields"
            pixels = select_rows(batch.hq_pixels, rows)
            t_rows = select_rows(t, rows)
            perceptual = self.perceptual_loss(x0_prediction, pixels, t_rows, generator)
            total = total + perceptual.sum() / len(squared)
        if batch.micro.weight:  # else this worker only keeps pace with the others
            self.time_map.add(t, s, squared)
        over_time = {}
        for name, mask in ((FM, times.is_flow_matching), (SD, ~times.is_flow_matching)):
            rows = mask.nonzero().squeeze(1)
            over_time[name] = (select_rows(t, rows), select_rows(squared.detach(), rows))
        nothing = squared[:0]
        # A part that the recipe leaves out counts no sample, so it is not reported.
        values = {
            TOTAL: total.detach().expand(len(squared)),
            **{name: by_sample for name, (_, by_sample) in over_time.items()},
            PERCEPTUAL: nothing if perceptual is None else perceptual,
            WEIGHTING: nothing if phi is None else phi,
        }
        return Losses(total, {name: Term.of(each) for name, each in values.items()}, over_time)

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

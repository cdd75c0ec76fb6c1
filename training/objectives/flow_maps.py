"""The flow-map objectives: a batch of latents to a loss, L_FM + L_SD in one student forward (eq.
12).

The training loop calls `losses = objective(model, batch, generator)` and knows nothing else about a
method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.interpolant import interpolate, per_sample, sample_times
from training.loader import Batch
from training.models.flow_map_net import FlowMapNet
from training.objectives.perceptual import PatchRegulariser
from training.objectives.targets import flow_matching_target, grounded, shortcut_target
from training.objectives.weighting import DynamicWeighting, weighted_loss
from training.settings import FlowMatching, ObjectiveSettings, SelfDistillation

LOSS_NAMES = ("total", "fm", "sd", "perceptual", "weighting")


@dataclass(frozen=True)
class Losses:
    """The loss to minimise and what is reported of it."""

    total: Tensor
    """Scalar with gradient."""
    sums: Tensor
    """(5, 2) float64 without gradient: the sum over samples and the number of samples behind each
    of
    LOSS_NAMES. Adding them over micro batches and workers gives exact means, also where a term had
    no sample."""


class TrainedModel(nn.Module):
    """Everything a stage optimises: the network and, if the recipe asks for it, the weighting."""

    def __init__(self, net: FlowMapNet, weighting: DynamicWeighting | None) -> None:
        super().__init__()
        self.net = net
        self.weighting = weighting

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
        self, settings: ObjectiveSettings, *, regulariser: PatchRegulariser | None
    ) -> None:
        self.settings = settings
        self.regulariser = regulariser

    def __call__(self, model: TrainedModel, batch: Batch, generator: torch.Generator) -> Losses:
        """The loss of one micro batch; all its draws come from `generator`."""
        t, s, is_fm = self._times(len(batch.hq), generator)
        x_t = interpolate(batch.hq, batch.lq, t)
        target = flow_matching_target(batch.hq, batch.lq)
        if isinstance(self.settings, SelfDistillation) and not bool(is_fm.all()):
            sd = ~is_fm
            teacher = grounded(model.net, finest=2.0**-self.settings.levels)
            target[sd] = shortcut_target(teacher, x_t[sd], t[sd], s[sd])

        u = model.net(x_t, t, s)
        squared = (u - target).square().flatten(1).mean(dim=1)
        phi = None if model.weighting is None else model.weighting(t, s)
        total = squared.mean() if phi is None else weighted_loss(squared, phi)
        perceptual = None
        if self.regulariser is not None:
            x0 = x_t - per_sample(t, x_t) * u
            perceptual = self.regulariser(x0, batch.require_pixels(), t, generator)
            total = total + perceptual.mean()
        return Losses(total, _sums(total, squared, is_fm, perceptual, phi))

    def _times(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        match self.settings:
            case FlowMatching():
                share = 1.0
            case SelfDistillation():
                share = self.settings.flow_matching_share
        return sample_times(
            n,
            levels=self.settings.levels,
            flow_matching_share=share,
            kind="shortcut",
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
        squared[is_fm],
        squared[~is_fm],
        nothing if perceptual is None else perceptual,
        nothing if phi is None else phi,
    )
    sums = torch.stack([term.sum() for term in terms])
    return torch.stack([sums, sums.new_tensor([len(term) for term in terms])], dim=1).double()

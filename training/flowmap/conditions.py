"""What each sample of a batch is conditioned on: its prompt, and how strongly it is guided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.flowmap.interpolant import Velocity
from training.flowmap.prompts import NEGATIVE, POSITIVE
from training.settings.objective import Guidance

Network = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""u(x, t, s, prompt, w), as `FlowMapNet` computes it."""


@dataclass(frozen=True)
class Conditions:
    """Conditions of a batch, each (B,), in host memory, where rows are chosen."""

    prompt: Tensor
    """POSITIVE or NEGATIVE, int64."""
    w: Tensor
    """Guidance strength, float32; 1 is none."""

    @property
    def is_negative(self) -> Tensor:
        return self.prompt == NEGATIVE

    @property
    def is_guided(self) -> Tensor:
        """Whether the negative velocity counts: (1 - w) is not 0."""
        return self.w != 1

    def on(self, device: torch.device) -> Conditions:
        """The same on `device`, for the network."""
        prompt, w = (each.to(device, non_blocking=True) for each in (self.prompt, self.w))
        return Conditions(prompt, w)

    def at(self, rows: Tensor) -> Conditions:
        return Conditions(self.prompt[rows], self.w[rows])

    def negated(self) -> Conditions:
        """Those of the negative branch: c- and w = 1."""
        return Conditions(torch.full_like(self.prompt, NEGATIVE), torch.ones_like(self.w))

    def velocity(self, net: Network) -> Velocity:
        """The network under these conditions, as u(x, t, s)."""

        def evaluate(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            own = self.on(x.device)
            return net(x, t, s, own.prompt, own.w)

        return evaluate


def usual_guidance(guidance: Guidance | None) -> float:
    """The strength w that a model of these settings is used with by default."""
    return 1.0 if guidance is None else guidance.mean_strength


def draw_conditions(guidance: Guidance | None, n: int, generator: torch.Generator) -> Conditions:
    """c- and w = 1 with probability p_neg, else c+ and w ~ U[strength]; c+ and 1 unguided."""
    device = generator.device
    if guidance is None:
        positive = torch.full((n,), POSITIVE, device=device)
        return Conditions(positive, torch.ones(n, device=device))
    coin, place = torch.rand(2, n, generator=generator, device=device)
    is_negative = coin < guidance.negative_fraction
    low, high = guidance.strength
    w = torch.where(is_negative, 1.0, low + (high - low) * place)
    return Conditions(torch.where(is_negative, NEGATIVE, POSITIVE), w)

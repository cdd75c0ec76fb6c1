"""Dynamic weighting of the loss over (t, s) (FlowMapSR eq. 19, after EDM2)."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional


def weighted_loss(per_sample: Tensor, log_weight: Tensor) -> Tensor:
    """E[exp(-phi) L + phi] for losses (B,) and phi (B,); least at phi = log E[L]."""
    return (torch.exp(-log_weight) * per_sample + log_weight).mean()


TIME_SCALE = 1000.0
"""Times enter the embeddings as 1000 t, so that neighbors on the finest grid differ; no derivative
in time is ever taken of phi."""


class DynamicWeighting(nn.Module):
    """phi(t, s): two sinusoidal embeddings, then 512 -> hidden -> 1; zero at the start."""

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

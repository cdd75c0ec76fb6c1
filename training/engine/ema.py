"""The exponential moving average of a network's master weights, kept where the masters lie.

Works on whatever tensors an optimiser updates, whole ones or a worker's flat part of all (ZeRO), so
no worker ever needs another's. Knows no engine and no files.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """fp32 averages of tensors: a <- decay * a + (1 - decay) * w after every update of w."""

    def __init__(self, masters: Iterable[Tensor], *, decay: float) -> None:
        """They start as the tensors' present values."""
        self.decay = decay
        self._masters = list(masters)
        self._averages = {
            id(master): master.detach().clone().requires_grad_(False) for master in self._masters
        }

    def of(self, master: Tensor) -> Tensor:
        return self._averages[id(master)]

    @torch.no_grad()
    def update(self) -> None:
        """Takes up the present values."""
        for master in self._masters:
            self.of(master).lerp_(master.detach(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges masters and averages; a second call restores both exactly."""
        for master in self._masters:
            kept = master.detach().clone()
            master.copy_(self.of(master))
            self.of(master).copy_(kept)

"""The exponential moving average of a network's master weights, on the masters' device.

Works on the tensors that an optimizer updates, whole ones or a worker's flat partition (ZeRO), so
workers need not communicate.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """fp32 averages of tensors: a <- decay * a + (1 - decay) * w after every update of w."""

    def __init__(self, masters: Iterable[Tensor], *, decay: float) -> None:
        """Initializes the averages with the tensors' current values."""
        self.decay = decay
        self._masters = list(masters)
        self._averages = {
            id(master): master.detach().clone().requires_grad_(False) for master in self._masters
        }

    def of(self, master: Tensor) -> Tensor:
        return self._averages[id(master)]

    @torch.no_grad()
    def update(self) -> None:
        """Adds the current values to the averages."""
        for master in self._masters:
            self.of(master).lerp_(master.detach(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges masters and averages; a second call restores both exactly."""
        for master in self._masters:
            kept = master.detach().clone()
            master.copy_(self.of(master))
            self.of(master).copy_(kept)

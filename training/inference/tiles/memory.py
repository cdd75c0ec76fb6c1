"""How large tiles are where nobody says so, and how many are in a pass: by the memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.inference.tiles.batches import MOST
from training.monitoring.memory import MemoryModel, free_bytes, used_bytes

_LARGEST_ON_CPU = 1024
"""Side of the largest tile that is chosen on a CPU, pixels: what does not fit into its caches takes
longer (measured: 2.3 times at 2500)."""
_SHARE = 0.7
"""Of the free memory that a pass may take."""


@dataclass(frozen=True)
class TileWork:
    """A network's pass over a picture's latents, and what limits its tiles."""

    net: nn.Module
    fn: Callable[[Tensor], Tensor]
    x: Tensor
    pixels: int
    """Side of what one latent shows."""
    smallest: int
    """Side of the smallest tile, latents."""
    held: int
    """Bytes that will be needed beside the network's."""

    @property
    def device(self) -> torch.device:
        return next((weight.device for weight in self.net.parameters()), self.x.device)


class TileMemory:
    """Knows what the passes of one model take, from two small ones."""

    def __init__(self, most: int | None) -> None:
        """
        Args:
            most: bytes that this process may hold on the device; None takes most of what is free.
        """
        self._most = most
        self._model: MemoryModel | None = None

    def side(self, work: TileWork) -> int:
        """Of the largest tile that fits, latents; a picture that fits is one tile."""
        height, width = work.x.shape[-2:]
        if height * width <= (2 * work.smallest) ** 2:
            return max(height, width)
        places = self._places(work)
        if height * width <= places:
            return max(height, width)
        on_cpu = work.device.type == "cpu"
        largest = _LARGEST_ON_CPU // work.pixels if on_cpu else math.isqrt(places)
        return min(math.isqrt(places), largest)

    def at_a_time(self, work: TileWork, side: int) -> int:
        """Tiles of that side in a pass: those that fit on a GPU; one on a CPU, where more save no
        time."""
        if work.device.type == "cpu" or max(work.x.shape[-2:]) <= side:
            return 1
        return max(1, min(MOST, self._places(work) // side**2))

    def _places(self, work: TileWork) -> int:
        """The most places, of one tile or several, whose pass fits."""
        if self._model is None:
            sides = work.smallest, 2 * work.smallest
            self._model = MemoryModel(work.fn, *(work.x[..., :side, :side] for side in sides))
        if self._most is None:
            budget = _SHARE * free_bytes(work.device)
        else:
            budget = self._most - used_bytes(work.device)
        return self._model.places(budget - work.held)

"""What a network does with tiles of a picture, by themselves and with what all tiles share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.inference.restored import is_finite
from training.inference.tiles.batches import TileBatches
from training.inference.tiles.shared_norms import (
    Scales,
    SharedNorms,
    Sums,
    are_finite,
    sums_of_each,
)


class Measured(NamedTuple):
    """What the group norms saw of a tile."""

    sums: Sums
    again: bool
    """Whether it was not finite, and was done again in fp32."""


class Made(NamedTuple):
    """What came of a tile."""

    result: Tensor
    again: bool
    """As in `Measured`."""


class TilePass:
    """One evaluation of a network, on tiles. What is not finite is done again in fp32."""

    def __init__(
        self, net: nn.Module, fn: Callable[[Tensor], Tensor], batches: TileBatches | None = None
    ) -> None:
        """
        Args:
            fn: runs the network on tiles of latents (N, C, h, w).
            batches: what earlier passes found about batches of tiles.
        """
        self.net, self.fn, self.norms = net, fn, SharedNorms(net)
        self._batches = batches or TileBatches()

    def measured(self, x: Tensor) -> list[Measured]:
        """What the group norms see of each tile."""
        found = self._batches(self.net, "measure", self._sums, x)
        return [
            Measured(sums, again=False) if are_finite(sums) else self._measured_again(one)
            for sums, one in zip(found, x.split(1), strict=True)
        ]

    def made(self, x: Tensor, scales: Scales | None = None) -> list[Made]:
        """What comes of each tile.

        Args:
            scales: of the group norms; the tile's own when None.
        """
        with self.norms.applied(scales or [None] * len(self.norms.norms)):
            found = self._batches(self.net, "own" if scales is None else "shared", self._results, x)
            return [
                Made(result, again=False) if is_finite(result) else self._made_again(one)
                for result, one in zip(found, x.split(1), strict=True)
            ]

    def _results(self, x: Tensor) -> list[Tensor]:
        return list(self.fn(x).split(1))

    def _sums(self, x: Tensor) -> list[Sums]:
        with self.norms.measuring() as sums:
            self.fn(x)
        return sums_of_each(sums, len(x))

    def _measured_again(self, x: Tensor) -> Measured:
        with _in_fp32(self.net):
            return Measured(self._sums(x)[0], again=True)

    def _made_again(self, x: Tensor) -> Made:
        with _in_fp32(self.net):
            return Made(self.fn(x), again=True)


@contextmanager
def _in_fp32(net: nn.Module) -> Iterator[None]:
    dtype = next((weight.dtype for weight in net.parameters()), torch.float32)
    net.float()
    try:
        yield
    finally:
        net.to(dtype)

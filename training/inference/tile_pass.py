"""What a network does with one tile of a picture, by itself and with what all tiles share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.inference.restored import is_finite
from training.inference.shared_norms import Scales, SharedNorms, Sums, are_finite


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

    def __init__(self, net: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
        """
        Args:
            fn: runs the network on a tile of latents.
        """
        self.net, self.fn, self.norms = net, fn, SharedNorms(net)

    def measured(self, x: Tensor) -> Measured:
        """What the group norms see of a tile."""
        sums = self._sums(x)
        if are_finite(sums):
            return Measured(sums, again=False)
        with _in_fp32(self.net):
            return Measured(self._sums(x), again=True)

    def made(self, x: Tensor, scales: Scales | None = None) -> Made:
        """What comes of a tile.

        Args:
            scales: of the group norms; the tile's own when None.
        """
        with self.norms.applied(scales or [None] * len(self.norms.norms)):
            result = self.fn(x)
            if is_finite(result):
                return Made(result, again=False)
            with _in_fp32(self.net):
                return Made(self.fn(x), again=True)

    def _sums(self, x: Tensor) -> Sums:
        with self.norms.measuring() as sums:
            self.fn(x)
        return sums


@contextmanager
def _in_fp32(net: nn.Module) -> Iterator[None]:
    dtype = next((weight.dtype for weight in net.parameters()), torch.float32)
    net.float()
    try:
        yield
    finally:
        net.to(dtype)

"""Several tiles in one pass of a network, with the bits that each of them has alone.

Kernels choose the order of their sums by the sizes that they are given, so that a batch may round
otherwise than its tiles. Which layers do is found by trying: those see one tile at a time, the
others all of them. Linear layers always see one: in bf16 their few results hide such differences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from training.monitoring.memory import is_out_of_memory

Result = TypeVar("Result")
Work = Callable[[Tensor], list[Result]]
"""Tiles (N, C, h, w) to what comes of each."""

MOST = 8
"""Tiles in a batch where memory would hold more."""

log = logging.getLogger(__name__)


class TileBatches:
    """Runs batches as far as memory allows, and remembers which layers may see them."""

    def __init__(self) -> None:
        self.most = MOST
        """Tiles at a time, which memory may lower."""
        self.alone: dict[tuple[nn.Module, str, torch.Size], set[nn.Module] | None] = {}
        """Layers of a network that see one tile at a time, by the kind of work and the shape of a
        batch; None where the whole network does."""

    def __call__(self, net: nn.Module, kind: str, work: Work[Result], x: Tensor) -> list[Result]:
        """What comes of each tile, with the same bits as `work` of one after the other.

        Args:
            kind: of the work, of which the network's passes are alike.
            work: runs the network once.
            x: tiles (N, C, h, w).
        """
        if len(x) > self.most:
            parts = x.split(self.most)
            return list(chain.from_iterable(self(net, kind, work, part) for part in parts))
        try:
            return self._together(net, kind, work, x)
        except (MemoryError, RuntimeError) as error:
            if len(x) == 1 or not is_out_of_memory(error):
                raise
        self.most = len(x) // 2
        log.warning("memory was full: going on with %d tiles at a time", self.most)
        return self(net, kind, work, x)

    def _together(self, net: nn.Module, kind: str, work: Work[Result], x: Tensor) -> list[Result]:
        if len(x) == 1:
            return work(x)
        key = net, kind, x.shape
        if key not in self.alone:
            self.alone[key] = _layers_alone(net, work, x)
        alone = self.alone[key]
        if alone is None:
            return _one_by_one(work, x)
        with _replaced(alone, _one_at_a_time):
            return work(x)


def _layers_alone(net: nn.Module, work: Work[Result], x: Tensor) -> set[nn.Module] | None:
    """The layers that must see one tile at a time; None where that is not enough. Noise in place of
    the tiles shows it, as pictures may have places where all orders give the same."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    alone: set[nn.Module] = {layer for layer in net.modules() if isinstance(layer, nn.Linear)}
    others = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    with _replaced(others, partial(_compared, alone)), _replaced(alone, _one_at_a_time):
        together = work(noise)
    return alone if _same(together, _one_by_one(work, noise)) else None


def _one_by_one(work: Work[Result], x: Tensor) -> list[Result]:
    return list(chain.from_iterable(work(one.clone()) for one in x.split(1)))


def _one_at_a_time(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([type(layer).forward(layer, one) for one in x.split(1)])


def _compared(differing: set[nn.Module], layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer makes of each alone; it is added to those that make something else of all."""
    alone, together = _one_at_a_time(layer, x), type(layer).forward(layer, x)
    if not torch.equal(alone, together):
        differing.add(layer)
    return alone


def _same(some: Sequence[Result], others: Sequence[Result]) -> bool:
    pairs = zip(tree_leaves(some), tree_leaves(others), strict=True)
    return all(one is other is None or torch.equal(one, other) for one, other in pairs)


@contextmanager
def _replaced(
    layers: Iterable[nn.Module], forward: Callable[[nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Inside, the layers do this."""
    replaced = list(layers)
    try:
        for layer in replaced:
            layer.forward = partial(forward, layer)
        yield
    finally:
        for layer in replaced:
            layer.__dict__.pop("forward", None)

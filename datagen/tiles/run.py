"""Who does the work on tiles: this process, unless somebody else is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

N = TypeVar("N")
X = TypeVar("X")
Y = TypeVar("Y")


class Run(Protocol):
    """Does work on one tile after the other."""

    def __call__(self, network: N, work: Callable[[N, X], Y], tiles: Iterable[X]) -> Iterator[Y]:
        """`work` of the network and each tile, in the order of the tiles.

        Args:
            network: that of this process; another process has its own of the same model.
            work: can be pickled.
            tiles: each a contiguous tensor (B, C, h, w), or a tuple that begins with one. Some may
                be taken before the results of those before them are asked for.

        Returns:
            What has tensors has them on the device of the tile's.
        """


def here(network: N, work: Callable[[N, X], Y], tiles: Iterable[X]) -> Iterator[Y]:
    """In this process, one at a time: a `Run`."""
    return (work(network, tile) for tile in tiles)

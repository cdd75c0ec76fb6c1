"""Group norms that all tiles of a picture share.

A tile's own mean and variance differ from its neighbor's, and that is what makes most of a seam.
So every evaluation passes over the tiles twice: once to measure, once with what all have together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn

from datagen.tiles.norm_sums import NormSums, apply, release

Sums = list[Tensor | None]
"""Of every group norm of a network in order, as `NormSums.sums`, on the CPU."""
Scales = list[tuple[Tensor, Tensor] | None]
"""Scale and shift of every group norm, as `NormSums.scale_and_shift` gives them, on the CPU; None
of norms that saw nothing."""


class SharedNorms:
    """Mean and variance of every group norm of a network, over all tiles of one picture."""

    def __init__(self, net: nn.Module) -> None:
        self.norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]

    @contextmanager
    def measuring(self) -> Iterator[Sums]:
        """Inside, what the norms see is counted; at its end the list holds their sums."""
        counts, sums = [NormSums(norm) for norm in self.norms], Sums()
        try:
            for count in counts:
                count.norm.forward = count.measure  # type: ignore[method-assign,assignment]
            yield sums
        finally:
            self._release()
        sums += _on_cpu([count.sums for count in counts])

    def scales(self, sums: Sums) -> Scales:
        """What the norms do to a picture of which all tiles have these sums together."""
        return [
            None if one is None else NormSums(norm, one).scale_and_shift()
            for norm, one in zip(self.norms, sums, strict=True)
        ]

    @contextmanager
    def applied(self, scales: Scales) -> Iterator[None]:
        """Inside, the norms use these in place of their input's own mean and variance."""
        try:
            for norm, one in zip(self.norms, scales, strict=True):
                if one is not None:
                    apply(norm, *one)
            yield
        finally:
            self._release()

    def _release(self) -> None:
        for norm in self.norms:
            release(norm)


def sums_of_each(sums: Sums, count: int) -> list[Sums]:
    """Those of a batch of tiles, for each of them."""
    return [[None if one is None else one[:, n : n + 1] for one in sums] for n in range(count)]


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of one tile or more together, added in their order."""
    return reduce(_both, parts)


def _both(first: Sums, second: Sums) -> Sums:
    return [
        one if other is None else other if one is None else one + other
        for one, other in zip(first, second, strict=True)
    ]


def are_finite(sums: Sums) -> bool:
    """Whether everything that was measured is."""
    return all(one is None or bool(one.isfinite().all()) for one in sums)


def _on_cpu(sums: Sums) -> Sums:
    """In one transfer: a GPU's work is waited for at each."""
    seen = [one for one in sums if one is not None]
    if not seen:
        return sums
    flat = torch.cat([one.flatten() for one in seen]).cpu()
    parts = iter(flat.split([one.numel() for one in seen]))
    return [None if one is None else next(parts).view(one.shape) for one in sums]

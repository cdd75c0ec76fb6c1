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

_CPU = torch.device("cpu")

Sums = list[Tensor | None]
"""Of every group norm of a network in order, as `NormSums.sums`, on the CPU."""
Scales = list[tuple[Tensor, Tensor] | None]
"""Scale and shift of every group norm, as `NormSums.scale_and_shift` gives them, on the CPU; None
of norms that saw nothing."""


class SharedNorms:
    """Mean and variance of every group norm of a network, over all tiles of one picture."""

    def __init__(self, net: nn.Module) -> None:
        self._device = next((weight.device for weight in net.parameters()), _CPU)
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
        seen = iter(_moved([count.sums for count in counts if count.sums is not None], _CPU))
        sums += [None if count.sums is None else next(seen) for count in counts]

    def scales(self, sums: Sums) -> Scales:
        """What the norms do to a picture of which all tiles have these sums together."""
        return [
            None if one is None else NormSums(norm, one).scale_and_shift()
            for norm, one in zip(self.norms, sums, strict=True)
        ]

    @contextmanager
    def applied(self, scales: Scales) -> Iterator[None]:
        """Inside, the norms use these in place of their input's own mean and variance."""
        given = [
            (norm, one) for norm, one in zip(self.norms, scales, strict=True) if one is not None
        ]
        there = iter(_moved([each for _, one in given for each in one], self._device))
        try:
            for norm, _ in given:
                apply(norm, next(there), next(there))
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


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """On a device, in one transfer: a GPU's work is waited for at each."""
    if not tensors or tensors[0].device == device:
        return tensors
    flat = torch.cat([one.flatten() for one in tensors]).to(device)
    parts = flat.split([one.numel() for one in tensors])
    # Copies: where a view is sent to another process, all that it is a view of goes with it.
    return [part.view(one.shape).clone() for part, one in zip(parts, tensors, strict=True)]

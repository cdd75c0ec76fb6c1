"""Group norms that all tiles of a picture share.

A tile's own mean and variance differ from its neighbor's, and that is what makes most of a seam.
So every evaluation passes over the tiles twice: once to measure, once with what all have together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from datagen.tiles.norm_sums import NormSums, release


class SharedNorms:
    """Mean and variance of every group norm of a network, over all tiles of one picture."""

    def __init__(self, net: nn.Module) -> None:
        self.norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
        self._sums: dict[nn.GroupNorm, NormSums] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the network's passes are counted; what was measured before is forgotten."""
        sums = {norm: NormSums(norm) for norm in self.norms}
        for norm, one in sums.items():
            norm.forward = one.measure  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for norm in self.norms:
                release(norm)
            self._sums = {norm: one for norm, one in sums.items() if one.was_used()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the norms use what was measured in place of their input's own values."""
        try:
            for sums in self._sums.values():
                sums.apply()
            yield
        finally:
            for norm in self.norms:
                release(norm)

    def are_finite(self) -> bool:
        """Whether everything that was measured is."""
        return all(sums.are_finite() for sums in self._sums.values())

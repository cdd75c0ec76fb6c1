"""Turns samples into the sums that the manifest's statistics are made of.

Sums add up in the order of their tasks to the same numbers always. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datagen.dataset.counts import Counts, CountTally
from datagen.dataset.records import CodecRecord, DrawnSample
from datagen.records import FrozenModel
from datagen.settings import DatasetRecipe

_SCALE_BINS = 15


class Histogram(FrozenModel):
    """`counts[i]` values fell between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class LatentStatistics(FrozenModel):
    """Over all positions of all HQ latents, one value for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    positions: int
    """How many positions that were."""


class Statistics(FrozenModel):
    latent: LatentStatistics
    scale: Histogram
    """Downscale factors of the LQ images."""
    counts: Counts
    """What `histograms.png` shows."""


class Sums(FrozenModel):
    """What some samples add to the statistics; counts of scales fall in `scale_edges`."""

    codec: CodecRecord
    positions: int
    """Latent positions counted, all samples together."""
    latent_sum: tuple[float, ...]
    latent_square_sum: tuple[float, ...]
    scales: tuple[int, ...]
    counts: Counts

    def plus(self, other: Sums) -> Sums:
        return Sums(
            codec=self.codec,
            positions=self.positions + other.positions,
            latent_sum=_added(self.latent_sum, other.latent_sum),
            latent_square_sum=_added(self.latent_square_sum, other.latent_square_sum),
            scales=tuple(a + b for a, b in zip(self.scales, other.scales, strict=True)),
            counts=self.counts.plus(other.counts),
        )


class Tally:
    """Collects sums while the samples of a task stream by."""

    def __init__(self, codec: CodecRecord, recipe: DatasetRecipe) -> None:
        self._codec = codec
        self._edges = scale_edges(recipe)
        self._positions = 0
        self._sum = np.zeros(codec.channels)
        self._square_sum = np.zeros(codec.channels)
        self._scales: list[float] = []
        self._counts = CountTally()

    def add(self, hq_latent: np.ndarray, drawn: DrawnSample, *, photo_side: int) -> None:
        """Counts one stored sample; `hq_latent` is (C, h, w), `photo_side` the photo's shorter."""
        values = hq_latent.reshape(len(hq_latent), -1).astype(np.float32)
        self._positions += values.shape[1]
        self._sum += values.sum(axis=1, dtype=np.float64)
        self._square_sum += np.einsum("cp,cp->c", values, values, dtype=np.float64)
        self._scales.append(drawn.scale)
        self._counts.add(drawn, photo_side=photo_side)

    def sums(self) -> Sums:
        return Sums(
            codec=self._codec,
            positions=self._positions,
            latent_sum=tuple(self._sum.tolist()),
            latent_square_sum=tuple(self._square_sum.tolist()),
            scales=tuple(np.histogram(self._scales, bins=self._edges)[0].tolist()),
            counts=self._counts.counts(),
        )


def scale_edges(recipe: DatasetRecipe) -> np.ndarray:
    """Bounds of the bins in which downscale factors are counted, (bins + 1,)."""
    return np.histogram_bin_edges([], bins=_SCALE_BINS, range=recipe.degradation.scale)


def statistics(sums: Sums, recipe: DatasetRecipe) -> Statistics:
    positions = max(1, sums.positions)
    mean = np.array(sums.latent_sum) / positions
    square = np.array(sums.latent_square_sum) / positions
    return Statistics(
        latent=LatentStatistics(
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()),
            positions=sums.positions,
        ),
        scale=Histogram(edges=tuple(scale_edges(recipe).tolist()), counts=sums.scales),
        counts=sums.counts,
    )


def sums_of(statistics: Statistics, codec: CodecRecord) -> Sums:
    """The sums again, of a dataset that is to grow."""
    mean, std = np.array(statistics.latent.mean), np.array(statistics.latent.std)
    positions = statistics.latent.positions
    return Sums(
        codec=codec,
        positions=positions,
        latent_sum=tuple((mean * positions).tolist()),
        latent_square_sum=tuple(((std**2 + mean**2) * positions).tolist()),
        scales=statistics.scale.counts,
        counts=statistics.counts,
    )


def total(parts: Iterable[Sums]) -> Sums:
    """All of them together, added in their order; there must be at least one."""
    first, *others = parts
    for other in others:
        first = first.plus(other)
    return first


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))

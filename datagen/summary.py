"""Turns the samples of a shard into the numbers the manifest shows: statistics and rejections.

Sums are kept rather than means, so that shards add up in their order to the same numbers always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datagen.fields import Settings
from datagen.manifest import CodecRecord, Histogram, LatentStatistics, RejectedCount, Statistics
from datagen.settings import DatasetRecipe
from datagen.sources import Rejection

_SCALE_BINS = 15


class ShardSummary(Settings):
    """`<shard>.summary.json`: what a shard adds to the manifest beside its record."""

    codec: CodecRecord
    rejected: tuple[Rejection, ...]
    positions: int
    """Latent positions counted, all samples together."""
    latent_sum: tuple[float, ...]
    latent_square_sum: tuple[float, ...]
    scales: tuple[float, ...]
    """Downscale factor of each LQ image, in the order of the samples."""


class Tally:
    """Collects a summary while the samples of a shard stream by."""

    def __init__(self, codec: CodecRecord) -> None:
        self._codec = codec
        self._rejected: list[Rejection] = []
        self._positions = 0
        self._sum = np.zeros(codec.channels)
        self._square_sum = np.zeros(codec.channels)
        self._scales: list[float] = []

    def reject(self, rejection: Rejection) -> None:
        self._rejected.append(rejection)

    def add(self, hq_latent: np.ndarray, scale: float) -> None:
        """Counts one stored sample; `hq_latent` is (C, h, w)."""
        values = hq_latent.reshape(len(hq_latent), -1).astype(np.float32)
        self._positions += values.shape[1]
        self._sum += values.sum(axis=1, dtype=np.float64)
        self._square_sum += np.square(values).sum(axis=1, dtype=np.float64)
        self._scales.append(scale)

    def summary(self) -> ShardSummary:
        return ShardSummary(
            codec=self._codec,
            rejected=tuple(self._rejected),
            positions=self._positions,
            latent_sum=tuple(self._sum.tolist()),
            latent_square_sum=tuple(self._square_sum.tolist()),
            scales=tuple(self._scales),
        )


def statistics(summaries: Sequence[ShardSummary], recipe: DatasetRecipe) -> Statistics:
    """Adds up the shards, in their order."""
    positions = max(1, sum(summary.positions for summary in summaries))
    mean = np.sum([summary.latent_sum for summary in summaries], axis=0) / positions
    square = np.sum([summary.latent_square_sum for summary in summaries], axis=0) / positions
    scales = [scale for summary in summaries for scale in summary.scales]
    counts, edges = np.histogram(scales, bins=_SCALE_BINS, range=recipe.degradation.scale)
    return Statistics(
        latent=LatentStatistics(
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()),
        ),
        scale=Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist())),
    )


def rejected_count(rejected: Sequence[Rejection]) -> RejectedCount:
    reasons = Counter(item.reason for item in rejected)
    return RejectedCount(count=len(rejected), by_reason=dict(sorted(reasons.items())))

"""Turns a stage and its datasets into each bucket's probability, batch size and sources.

The order of samples inside a bucket is `schedule.py`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import Split
from datagen.errors import FlowmapsrError
from datagen.samples.buckets import Bucket
from datagen.settings import BucketSettings
from training.settings.stage import BatchSize, Budget, StageSettings


@dataclass(frozen=True)
class BucketShare:
    """One bucket's part in a stage."""

    bucket: str
    probability: float
    """Of a step to use it."""
    batch: BatchSize
    sources: tuple[float, ...] = (1.0,)
    """The part of its samples that comes from each of the datasets."""


def bucket_sizes(manifest: Manifest, split: Split) -> dict[str, int]:
    """Number of samples by bucket, empty buckets left out.

    Raises:
        FlowmapsrError: the split is empty.
    """
    sizes: dict[str, int] = {}
    for shard in manifest.shards:
        if shard.split == split and shard.num_samples:
            sizes[shard.bucket] = sizes.get(shard.bucket, 0) + shard.num_samples
    if not sizes:
        raise FlowmapsrError(
            f"the dataset has no sample in its {split!r} split; build it with more photos or "
            "another validation_fraction"
        )
    return dict(sorted(sizes.items()))


def source_shares(manifests: Sequence[Manifest], weights: Sequence[float] | None) -> list[float]:
    """The part of the training samples that each dataset gives."""
    given = weights or [sum(bucket_sizes(manifest, "train").values()) for manifest in manifests]
    return [weight / sum(given) for weight in given]


def proportional_shares(sizes: Mapping[str, int], batch: BatchSize) -> tuple[BucketShare, ...]:
    """Every bucket of a dataset in proportion to its samples."""
    return mixed_shares([sizes], None, batch)


def mixed_shares(
    sizes: Sequence[Mapping[str, int]], weights: Sequence[float] | None, batch: BatchSize
) -> tuple[BucketShare, ...]:
    """Every bucket in proportion to what the datasets give of it.

    A dataset gives its weight of all samples, from each of its buckets in proportion to its size
    there: all its samples come equally often.

    Args:
        sizes: of the buckets of each dataset.
        weights: of the datasets; None takes all samples of all equally often.
    """
    totals = [sum(one.values()) for one in sizes]
    given = [
        weight if total else 0.0 for weight, total in zip(weights or totals, totals, strict=True)
    ]
    shares = []
    for bucket in sorted({bucket for one in sizes for bucket in one}):
        parts = [
            weight * one.get(bucket, 0) / total if total else 0.0
            for weight, one, total in zip(given, sizes, totals, strict=True)
        ]
        sources = tuple(part / sum(parts) for part in parts)
        shares.append(BucketShare(bucket, sum(parts) / sum(given), batch, sources))
    return tuple(shares)


def bucket_shares(
    stage: StageSettings, manifests: Sequence[Manifest], weights: Sequence[float] | None = None
) -> tuple[BucketShare, ...]:
    """The buckets of the training splits that `stage` uses, with their shares.

    A bucket belongs to the pixel budget of its dataset's recipe with the closest area. Within a
    budget, buckets are drawn as by `mixed_shares`.

    Raises:
        FlowmapsrError: a budget of the stage has no sample, or samples have no budget.
    """
    sizes = [bucket_sizes(manifest, "train") for manifest in manifests]
    if stage.budgets is None:
        return mixed_shares(sizes, weights, stage.batch_size())
    by_side = [_by_side(*pair) for pair in zip(manifests, sizes, strict=True)]
    _check_sides(stage, stage.budgets, by_side)
    total = sum(budget.probability for budget in stage.budgets)
    return tuple(
        replace(inside, probability=budget.probability / total * inside.probability)
        for budget in stage.budgets
        if budget.probability > 0
        for inside in mixed_shares(
            [one.get(budget.side, {}) for one in by_side], weights, stage.batch_size(budget)
        )
    )


def _by_side(manifest: Manifest, sizes: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """The sizes of a dataset's buckets by the side of their pixel budget."""
    buckets = BucketSettings.model_validate(manifest.recipe["buckets"])
    sides = [budget.side for budget in buckets.budgets]
    by_side: dict[int, dict[str, int]] = {}
    for name, size in sizes.items():
        by_side.setdefault(_closest(sides, Bucket.from_name(name)), {})[name] = size
    return by_side


def _closest(sides: Iterable[int], bucket: Bucket) -> int:
    area = bucket.height * bucket.width
    return min(sorted(sides), key=lambda side: abs(math.log(side**2 / area)))


def _check_sides(
    stage: StageSettings,
    budgets: tuple[Budget, ...],
    by_side: Sequence[Mapping[int, Mapping[str, int]]],
) -> None:
    where = f"stage {stage.name!r}: budgets"
    found: dict[int, Counter[str]] = {}
    for one in by_side:
        for side, inside in one.items():
            found.setdefault(side, Counter()).update(inside)
    available = "; ".join(
        f"side {side}: {sum(inside.values())} ({', '.join(inside)})"
        for side, inside in sorted(found.items())
    )
    for budget in budgets:
        if budget.probability > 0 and budget.side not in found:
            raise FlowmapsrError(
                f"{where}: side {budget.side} has no sample in this dataset. It has {available}. "
                "Use one of these sides, or give this one probability 0"
            )
    unnamed = sorted(set(found) - {budget.side for budget in budgets})
    if unnamed:
        raise FlowmapsrError(
            f"{where}: side {unnamed[0]} is missing, but the dataset has samples of it: it has "
            f"{available}. Add this side, with probability 0 to leave its samples out"
        )

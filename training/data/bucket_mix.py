"""Turns a stage and a dataset into each bucket's probability and batch size.

The order of samples inside a bucket is `schedule.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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


def proportional_shares(sizes: dict[str, int], batch: BatchSize) -> tuple[BucketShare, ...]:
    """Every bucket in proportion to its samples."""
    total = sum(sizes.values())
    return tuple(BucketShare(name, size / total, batch) for name, size in sizes.items())


def bucket_shares(stage: StageSettings, manifest: Manifest) -> tuple[BucketShare, ...]:
    """The buckets of the training split that `stage` uses, with their shares.

    A bucket belongs to the pixel budget of the dataset's recipe with the closest area. Within a
    budget, buckets are drawn in proportion to their samples.

    Raises:
        FlowmapsrError: a budget of the stage has no sample, or samples have no budget.
    """
    sizes = bucket_sizes(manifest, "train")
    if stage.budgets is None:
        return proportional_shares(sizes, stage.batch_size())
    buckets = BucketSettings.model_validate(manifest.recipe["buckets"])
    sides = [budget.side for budget in buckets.budgets]
    by_side: dict[int, dict[str, int]] = {}
    for name, size in sizes.items():
        by_side.setdefault(_closest(sides, Bucket.from_name(name)), {})[name] = size
    _check_sides(stage, stage.budgets, by_side)
    total = sum(budget.probability for budget in stage.budgets)
    return tuple(
        BucketShare(inside.bucket, budget.probability / total * inside.probability, inside.batch)
        for budget in stage.budgets
        if budget.probability > 0
        for inside in proportional_shares(by_side[budget.side], stage.batch_size(budget))
    )


def _closest(sides: Iterable[int], bucket: Bucket) -> int:
    area = bucket.height * bucket.width
    return min(sorted(sides), key=lambda side: abs(math.log(side**2 / area)))


def _check_sides(
    stage: StageSettings, budgets: tuple[Budget, ...], by_side: dict[int, dict[str, int]]
) -> None:
    where = f"stage {stage.name!r}: budgets"
    available = "; ".join(
        f"side {side}: {sum(inside.values())} ({', '.join(inside)})"
        for side, inside in sorted(by_side.items())
    )
    for budget in budgets:
        if budget.probability > 0 and budget.side not in by_side:
            raise FlowmapsrError(
                f"{where}: side {budget.side} has no sample in this dataset. It has {available}. "
                "Use one of these sides, or give this one probability 0"
            )
    unnamed = sorted(set(by_side) - {budget.side for budget in budgets})
    if unnamed:
        raise FlowmapsrError(
            f"{where}: side {unnamed[0]} is missing, but the dataset has samples of it: it has "
            f"{available}. Add this side, with probability 0 to leave its samples out"
        )

"""A stage and a dataset to how often each bucket is drawn, and with which batch size.

Knows sizes and counts; which samples of a bucket come when is the schedule's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import Split
from datagen.errors import FlowmapsrError
from datagen.samples.buckets import Bucket
from training.settings.stage import BatchSize, Budget, StageSettings


@dataclass(frozen=True)
class BucketDraw:
    """What one bucket is to a stage."""

    bucket: str
    probability: float
    """The chance of a step to draw it."""
    batch: BatchSize


def bucket_sizes(manifest: Manifest, split: Split) -> dict[str, int]:
    """Samples of each bucket that has any, by name.

    Raises FlowmapsrError when the split is empty.
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


def proportional_draws(sizes: dict[str, int], batch: BatchSize) -> tuple[BucketDraw, ...]:
    """Every bucket in proportion to its samples."""
    total = sum(sizes.values())
    return tuple(BucketDraw(name, size / total, batch) for name, size in sizes.items())


def stage_draws(stage: StageSettings, manifest: Manifest) -> tuple[BucketDraw, ...]:
    """The buckets of the training split as `stage` draws them; those it leaves out are not named.

    A bucket belongs to the pixel budget of the dataset's recipe whose area it is closest to. Inside
    a budget the buckets come in proportion to their samples.

    Raises:
        FlowmapsrError: a budget of the stage has no sample, or samples of the dataset no budget.
    """
    sizes = bucket_sizes(manifest, "train")
    if stage.budgets is None:
        return proportional_draws(sizes, stage.batch_size())
    sides = [budget.side for budget in manifest.dataset_recipe("").buckets.budgets]
    by_side: dict[int, dict[str, int]] = {}
    for name, size in sizes.items():
        by_side.setdefault(_closest(sides, Bucket.from_name(name)), {})[name] = size
    _check_sides(stage, stage.budgets, by_side)
    total = sum(budget.probability for budget in stage.budgets)
    return tuple(
        BucketDraw(inside.bucket, budget.probability / total * inside.probability, inside.batch)
        for budget in stage.budgets
        if budget.probability > 0
        for inside in proportional_draws(by_side[budget.side], stage.batch_size(budget))
    )


def _closest(sides: Iterable[int], bucket: Bucket) -> int:
    area = bucket.height * bucket.width
    return min(sorted(sides), key=lambda side: abs(math.log(side**2 / area)))


def _check_sides(
    stage: StageSettings, budgets: tuple[Budget, ...], by_side: dict[int, dict[str, int]]
) -> None:
    where = f"stage {stage.name!r}: budgets"
    there = "; ".join(
        f"side {side}: {sum(inside.values())} ({', '.join(inside)})"
        for side, inside in sorted(by_side.items())
    )
    for budget in budgets:
        if budget.probability > 0 and budget.side not in by_side:
            raise FlowmapsrError(
                f"{where}: side {budget.side} has no sample in this dataset. It has {there}. "
                "Take one of these sides, or give this one probability 0"
            )
    unnamed = sorted(set(by_side) - {budget.side for budget in budgets})
    if unnamed:
        raise FlowmapsrError(
            f"{where}: side {unnamed[0]} is not named, and the dataset has samples of it. It has "
            f"{there}. Add this side, with probability 0 to leave its samples out"
        )

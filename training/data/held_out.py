"""The held-out samples that every validation restores: the same in all trainings on a dataset.

Their groups depend on the dataset and the number of samples alone, so what is measured on them
does not depend on the number of workers or the micro batch.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from datagen.dataset.manifest import Dataset, Manifest
from datagen.dataset.records import Split
from datagen.samples.buckets import Bucket
from training.data.bucket_mix import bucket_sizes, proportional_shares
from training.data.loader import BatchReader
from training.data.schedule import MicroStep, PlannedBatch, Position, Schedule
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.recipe import SampleCount
from training.settings.stage import BatchSize

GROUP_PIXELS, LARGEST_GROUP, LEAST_GROUPS = 2**19, 8, 2
"""Groups are so small that a pass without gradients takes less memory than a training step, and so
many of a bucket that two workers share them."""
WINDOW_SHARDS = 4
"""Shards of a bucket that samples are taken from: each is read whole once, to check it."""


def held_out_split(manifest: Manifest) -> Split:
    """`validation`; `train` in a dataset that holds nothing out."""
    splits = {shard.split for shard in manifest.shards if shard.num_samples}
    return "validation" if "validation" in splits else "train"


def held_out_reader(
    store: ShardStore, dataset: Dataset, samples: SampleCount, *, lq_pixels: bool = False
) -> BatchReader:
    """Reads the groups of `held_out_groups`, with all fields that the samples have; `lq_pixels`
    adds these where LQ latents are stored."""
    manifest, recipe = dataset.manifest, dataset.manifest.dataset_recipe(dataset.root)
    split = held_out_split(manifest)
    shares = proportional_shares(bucket_sizes(manifest, split), BatchSize(1, 1))
    schedule = Schedule(
        manifest,
        shares,
        seed=0,
        shuffle_window_shards=WINDOW_SHARDS,
        split=split,
        in_order=samples == "all",
    )
    fields = BatchFields.stored(recipe)
    if lq_pixels:
        fields = replace(fields, lq_pixels="stored")
    return BatchReader(store, schedule, manifest.codec, fields, stored_lq=recipe.lq_pixels)


def held_out_groups(manifest: Manifest, samples: SampleCount) -> list[PlannedBatch]:
    """At most `samples` samples of the held-out split, from each bucket in proportion, or all, in
    groups of one bucket that are evaluated together."""
    sizes = bucket_sizes(manifest, held_out_split(manifest))
    groups = []
    for bucket, count in (sizes if samples == "all" else _shared(sizes, samples)).items():
        size = Bucket.from_name(bucket)
        fitting = max(1, GROUP_PIXELS // (size.height * size.width))
        largest = min(LARGEST_GROUP, fitting, math.ceil(count / LEAST_GROUPS))
        for part in np.array_split(np.arange(count), math.ceil(count / largest)):
            numbers = range(int(part[0]), int(part[-1]) + 1)
            groups.append(PlannedBatch(bucket, numbers, MicroStep(), Position()))
    return groups


def _shared(sizes: dict[str, int], samples: int) -> dict[str, int]:
    """How many of the samples each bucket gives: in proportion to its size, by largest remainder,
    without the buckets that give none."""
    total = sum(sizes.values())
    samples = min(samples, total)
    exact = {name: samples * size / total for name, size in sizes.items()}
    counts = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in rest[: samples - sum(counts.values())]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count}

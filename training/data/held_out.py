"""The held-out samples that every validation restores: the same in all trainings on the same data.

Their groups depend on the datasets and the number of samples alone, so what is measured on them
does not depend on the number of workers or the micro batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datagen.dataset.manifest import Dataset, Manifest
from datagen.dataset.records import Split
from datagen.samples.buckets import Bucket
from training.data.bucket_mix import BucketShare, bucket_sizes
from training.data.loader import BatchReader, Source
from training.data.planned import MicroStep, Numbered, PlannedBatch, Position, bucket_of, part_name
from training.data.schedule import Schedule
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.recipe import SampleCount
from training.settings.stage import BatchSize

GROUP_PIXELS, LARGEST_GROUP, LEAST_GROUPS = 2**19, 8, 2
"""Groups are so small that a pass without gradients takes less memory than a training step, and so
many of a bucket that two workers share them."""
WINDOW_SHARDS = 4
"""Shards of a bucket that samples are taken from: each is read whole once, to check it."""


def held_out_split(manifests: Sequence[Manifest]) -> Split:
    """`validation`; `train` where no dataset holds anything out."""
    splits = {
        shard.split for manifest in manifests for shard in manifest.shards if shard.num_samples
    }
    return "validation" if "validation" in splits else "train"


def held_out_reader(
    stores: Sequence[ShardStore],
    datasets: Sequence[Dataset],
    samples: SampleCount,
    *,
    lq_pixels: bool = False,
) -> BatchReader:
    """Reads the groups of `held_out_groups`, with all fields that the samples of all datasets
    have; `lq_pixels` adds these where LQ latents are stored."""
    manifests = [dataset.manifest for dataset in datasets]
    recipes = [dataset.manifest.dataset_recipe(dataset.root) for dataset in datasets]
    split = held_out_split(manifests)
    names = {name for sizes in _sizes(manifests) for name in sizes}
    schedule = Schedule(
        manifests,
        tuple(BucketShare(name, 1, BatchSize(1, 1)) for name in sorted(names)),
        seed=0,
        shuffle_window_shards=WINDOW_SHARDS,
        split=split,
        in_order=samples == "all",
    )
    sources = [
        Source(store, recipe.lq_pixels) for store, recipe in zip(stores, recipes, strict=True)
    ]
    codecs = [manifest.codec for manifest in manifests]
    fields = BatchFields.stored_by_all(recipes)
    if codecs.count(codecs[0]) < len(codecs):
        fields = replace(fields, latents=())
    if lq_pixels:
        fields = replace(fields, lq_pixels="stored")
    return BatchReader(sources, schedule, codecs[0] if fields.latents else None, fields)


def held_out_groups(manifests: Sequence[Manifest], samples: SampleCount) -> list[PlannedBatch]:
    """At most `samples` samples of the held-out splits, from each bucket of each dataset in
    proportion, or all, in groups of one bucket and dataset that are evaluated together."""
    sizes = {
        part_name(bucket, source): size
        for source, buckets in enumerate(_sizes(manifests))
        for bucket, size in buckets.items()
    }
    groups = []
    for part, count in (sizes if samples == "all" else _shared(sizes, samples)).items():
        bucket = bucket_of(part)
        size = Bucket.from_name(bucket)
        fitting = max(1, GROUP_PIXELS // (size.height * size.width))
        largest = min(LARGEST_GROUP, fitting, math.ceil(count / LEAST_GROUPS))
        for numbers in np.array_split(np.arange(count), math.ceil(count / largest)):
            planned = tuple(Numbered(part, int(number)) for number in numbers)
            groups.append(PlannedBatch(bucket, planned, MicroStep(), Position()))
    return groups


def _sizes(manifests: Sequence[Manifest]) -> list[dict[str, int]]:
    """Of the buckets of the held-out split of each dataset; a dataset without one has none."""
    split = held_out_split(manifests)
    return [
        bucket_sizes(manifest, split)
        if any(shard.split == split and shard.num_samples for shard in manifest.shards)
        else {}
        for manifest in manifests
    ]


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

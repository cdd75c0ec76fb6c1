"""Samples of several datasets are dealt out by weight: exactly, for any workers and resumes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Dataset, Manifest, open_dataset
from datagen.degradation.settings import DegradationSettings, Downscale, ResizeBack
from datagen.errors import FlowmapsrError
from tests.support.tiny import WARMUP, dataset_recipe, with_shards, write_photos
from training.data.bucket_mix import bucket_shares
from training.data.dealing import deal
from training.data.fresh_degradation import FreshDegradation
from training.data.held_out import held_out_groups
from training.data.loader import BatchReader, Source
from training.data.mixture import check_mixture
from training.data.planned import MicroStep, PlannedBatch, PlannedStep, Position, source_of
from training.data.schedule import Schedule
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.stage import StageSettings

START = Position()


def _stage(global_batch: int) -> StageSettings:
    return StageSettings.model_validate(WARMUP | {"global_batch": global_batch, "micro_batch": 1})


def _schedule(
    manifests: Sequence[Manifest], weights: Sequence[float] | None, *, global_batch: int = 4
) -> Schedule:
    shares = bucket_shares(_stage(global_batch), manifests, weights)
    return Schedule(manifests, shares, seed=0, shuffle_window_shards=2, split="train")


def _steps(schedule: Schedule, count: int, position: Position = START) -> list[PlannedStep]:
    steps = []
    for _ in range(count):
        steps.append(schedule.step_at(position))
        position = steps[-1].position
    return steps


@pytest.mark.parametrize("sources", [2, 3, 5, 9])
def test_every_source_has_its_share_of_any_number_of_samples(sources: int) -> None:
    rng = np.random.default_rng(sources)
    for _ in range(20):
        shares = rng.random(sources) ** 3 + 1e-3
        shares /= shares.sum()
        taken = np.zeros(sources, int)
        while taken.sum() < 400:
            for source in deal(list(shares), list(taken), [0.0] * sources, int(rng.integers(1, 9))):
                taken[source] += 1
                assert np.abs(taken - shares * taken.sum()).max() < 1


def test_equal_deadlines_go_to_the_source_that_is_behind_in_other_buckets() -> None:
    assert list(deal([0.5, 0.5], [0, 0], [0.0, 0.0], 2)) == [0, 1]
    assert list(deal([0.5, 0.5], [0, 0], [-0.5, 0.5], 2)) == [1, 0]


def test_weights_hold_over_all_buckets_and_passes_over_each_source_are_whole(
    manifest: Manifest,
) -> None:
    """The first has mostly bucket a, the second mostly b and is repeated most of the time."""
    large, small = with_shards(manifest, a_1=50, b_1=10), with_shards(manifest, a_1=1, b_1=3)
    steps = _steps(_schedule([large, small], [3, 1]), 400)
    for step in steps:
        seen = [step.position.images_of(source) for source in (0, 1)]
        # A batch has one bucket, and no source has the same part in both.
        assert abs(seen[0] - 0.75 * sum(seen)) < 4
    used = Counter(sample.part for step in steps for sample in step.samples)
    assert used == {"a": 1000, "b": 200, "a@1": 100, "b@1": 300}
    schedule = _schedule([large, small], [3, 1])
    times = Counter(
        (location.source, location.shard.bucket, location.index)
        for step in steps
        for location in itertools.starmap(schedule.location, step.samples)
    )
    assert {count for (source, *_), count in times.items() if source == 0} == {20}
    assert {count for (source, *_), count in times.items() if source == 1} == {100}


def test_without_weights_an_epoch_has_each_sample_of_all_sources_once(manifest: Manifest) -> None:
    manifests = [with_shards(manifest, a_1=5, a_2=4), with_shards(manifest, a_1=3)]
    schedule = _schedule(manifests, None, global_batch=3)
    for epoch in range(3):
        steps = _steps(schedule, 4 * epoch + 4)[4 * epoch :]
        seen = [schedule.location(*sample) for step in steps for sample in step.samples]
        assert len({(one.source, one.shard.path, one.index) for one in seen}) == len(seen) == 12


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_and_resumes_change_nothing(manifest: Manifest, workers: int) -> None:
    manifests = [with_shards(manifest, a_1=9, b_1=4), with_shards(manifest, a_1=3, b_2=2)]
    steps = _steps(_schedule(manifests, [0.6, 0.4], global_batch=6), 30)
    again = _steps(_schedule(manifests, [0.6, 0.4], global_batch=6), 13, steps[16].position)
    assert again == steps[17:]
    for step in steps:
        taken = [list(step.micro_batches_of(rank, workers)) for rank in range(workers)]
        used = [batch for turn in zip(*taken, strict=True) for batch in turn if batch.micro.weight]
        assert [sample for batch in used for sample in batch.samples] == list(step.samples)


def test_a_dataset_alone_has_the_order_that_it_had_before_mixtures(manifest: Manifest) -> None:
    schedule = _schedule([with_shards(manifest, a_1=5, a_2=3, b_1=4)], None)
    found = [schedule.location(*sample) for step in _steps(schedule, 3) for sample in step.samples]
    names = " ".join(f"{one.shard.path[0]}{one.shard.path[2]}.{one.index}" for one in found)
    assert names == "b1.2 b1.0 b1.1 b1.3 a1.3 a1.2 a2.2 a1.0 a1.4 a1.1 a2.1 a2.0"


def test_the_held_out_samples_of_all_sources_are_read_in_order(manifest: Manifest) -> None:
    one, two = (
        manifest.model_copy(
            update={
                "shards": tuple(
                    shard.model_copy(update={"split": "validation"})
                    for shard in with_shards(manifest, **{"256x256_0": count}).shards
                )
            }
        )
        for count in (3, 5)
    )
    groups = held_out_groups([one, two, with_shards(manifest, **{"256x256_0": 4})], "all")
    read = [(source_of(part), number) for group in groups for part, number in group.samples]
    assert read == [(0, number) for number in range(3)] + [(1, number) for number in range(5)]


def _other(manifest: Manifest, **codec: int) -> Manifest:
    assert manifest.codec is not None
    changed = manifest.codec.model_copy(update=codec)
    return manifest.model_copy(update={"codec": changed, "recipe_digest": "another"})


def test_sources_that_do_not_fit_together_are_refused_by_name(manifest: Manifest) -> None:
    first = Dataset(manifest, "/a")
    check_mixture(_stage(4), [first, Dataset(_other(manifest), "s3://b")])
    for other, message in (
        (first, "/a is given twice: .* the sum of both weights"),
        (Dataset(manifest, "/b"), "/a and /b are the same dataset .digest "),
        (
            Dataset(_other(manifest, channels=4), "s3://b"),
            "those of s3://b are of another codec .*: codec.channels is 4, not 192. Build one",
        ),
        (
            Dataset(with_shards(_other(manifest)), "/b"),
            "sources: /b: the dataset has no sample in its 'train' split.*, or leave it out",
        ),
    ):
        with pytest.raises(FlowmapsrError, match=message):
            check_mixture(_stage(4), [first, other])


@pytest.mark.parametrize("fresh", [False, True])
def test_each_source_is_read_by_its_own_chain(tmp_path: Path, fresh: bool) -> None:
    """One dataset is degraded, the other leaves its photos as they are."""
    datasets = []
    for name, scale in (("degraded", (4, 4)), ("plain", (1, 1))):
        made = dataset_recipe(write_photos(tmp_path / f"{name} photos", 3), tmp_path / name)
        chain = DegradationSettings(scale=scale, operations=(Downscale(), ResizeBack()))
        stored = {"degradation": chain, "hq_pixels": "png", "latents": (), "samples_per_photo": 2}
        build_in_process(made.model_copy(update=stored))
        datasets.append(open_dataset(made.output))
    manifests = [one.manifest for one in datasets]
    sources = [
        Source(
            ShardStore(root),
            fresh=FreshDegradation(manifest.dataset_recipe(root).degradation, 0) if fresh else None,
        )
        for manifest, root in datasets
    ]
    fields = BatchFields((), hq_pixels=True, lq_pixels="fresh" if fresh else "stored")
    schedule = _schedule(manifests, [1, 1])
    step = schedule.step_at(START)
    planned = PlannedBatch(step.bucket, step.samples, MicroStep(), START)
    batch = BatchReader(sources, schedule, None, fields).read(planned)
    assert batch.hq_pixels is not None and batch.lq_pixels is not None
    errors = (batch.hq_pixels / 255 - batch.lq_pixels).abs().amax((1, 2, 3)).tolist()
    from_plain = [source_of(part) for part, _ in planned.samples]
    assert sorted(from_plain) == [0, 0, 1, 1]
    assert [error < 0.01 for error in errors] == [bool(one) for one in from_plain]

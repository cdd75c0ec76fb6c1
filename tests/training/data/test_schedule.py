"""The order of samples: each exactly once per epoch, for any number of workers."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from datagen.dataset.manifest import Manifest
from datagen.errors import FlowmapsrError
from tests.support.tiny import with_shards
from training.data.bucket_mix import bucket_sizes, proportional_shares
from training.data.planned import Numbered, PlannedBatch, PlannedStep, Position, SampleLocation
from training.data.schedule import Schedule
from training.settings.stage import BatchSize

START = Position()


def _schedule(
    manifest: Manifest, *, global_batch: int = 4, seed: int = 0, shuffle_window_shards: int = 2
) -> Schedule:
    size = BatchSize(global_batch, 1)
    draws = proportional_shares(bucket_sizes(manifest, "train"), size)
    return Schedule(
        [manifest], draws, seed=seed, shuffle_window_shards=shuffle_window_shards, split="train"
    )


def _steps(schedule: Schedule, steps: int, position: Position = START) -> list[PlannedStep]:
    planned = []
    for _ in range(steps):
        planned.append(schedule.step_at(position))
        position = planned[-1].position
    return planned


def _run(
    schedule: Schedule, steps: int, position: Position = START
) -> list[tuple[SampleLocation, ...]]:
    return [_locations(schedule, step) for step in _steps(schedule, steps, position)]


def _locations(
    schedule: Schedule, planned: PlannedStep | PlannedBatch
) -> tuple[SampleLocation, ...]:
    return tuple(schedule.location(*sample) for sample in planned.samples)


def _names(locations: tuple[SampleLocation, ...]) -> list[tuple[str, int]]:
    return [(location.shard.path, location.index) for location in locations]


def _window_paths(schedule: Schedule, first: int, count: int) -> set[str]:
    """The shards that `count` samples of bucket a are read together with."""
    samples = tuple(Numbered("a", number) for number in range(first, first + count))
    step = PlannedStep("a", samples, BatchSize(count, 1), START)
    return {one.shard.path for _, window in schedule.windows(step) for one in window}


def test_every_sample_is_used_exactly_once_in_each_epoch(manifest: Manifest) -> None:
    schedule = _schedule(with_shards(manifest, a_1=5, a_2=3, a_3=4), global_batch=4)
    for epoch in range(3):
        batches = _run(schedule, 3 * (epoch + 1))[3 * epoch :]
        seen = Counter(name for batch in batches for name in _names(batch))
        assert len(seen) == 12 and set(seen.values()) == {1}


def test_no_sample_is_lost_where_a_batch_crosses_the_end_of_an_epoch(manifest: Manifest) -> None:
    schedule = _schedule(with_shards(manifest, a_1=5, a_2=2), global_batch=4)
    seen = Counter(name for batch in _run(schedule, 7) for name in _names(batch))
    assert set(seen.values()) == {4} and len(seen) == 7


def test_epochs_windows_and_seeds_have_different_orders(manifest: Manifest) -> None:
    one_bucket = with_shards(manifest, a_1=16, a_2=16)
    batches = _run(_schedule(one_bucket, global_batch=32), 2)
    assert _names(batches[0]) != _names(batches[1])
    other = _run(_schedule(one_bucket, global_batch=32, seed=1), 1)
    assert _names(other[0]) != _names(batches[0])
    windows = _run(_schedule(one_bucket, global_batch=16, shuffle_window_shards=1), 2)
    assert [location.index for location in windows[0]] != [
        location.index for location in windows[1]
    ]


def test_samples_mix_inside_a_window_and_not_beyond_it(manifest: Manifest) -> None:
    shards = {f"a_{number}": 10 for number in range(6)}
    schedule = _schedule(with_shards(manifest, **shards), global_batch=20)
    for step in _steps(schedule, 3):
        used = {location.shard.path for location in _locations(schedule, step)}
        assert len(used) == 2 and used == _window_paths(schedule, step.samples[0].number, 20)


@pytest.mark.parametrize("global_batch", [1, 7, 20, 33, 130])
def test_the_windows_of_a_step_are_those_of_its_samples(
    manifest: Manifest, global_batch: int
) -> None:
    shards = with_shards(manifest, a_1=10, a_2=3, a_3=14, a_4=1, a_5=8)
    schedule = _schedule(shards, global_batch=global_batch)
    for step in _steps(schedule, 12):
        used = {location.shard.path for location in _locations(schedule, step)}
        windows = _window_paths(schedule, step.samples[0].number, global_batch)
        assert used <= windows and len(windows) <= len(used) + 4


def test_a_batch_has_one_bucket_and_buckets_are_drawn_by_size(manifest: Manifest) -> None:
    schedule = _schedule(with_shards(manifest, a_1=30, b_1=10))
    buckets = []
    for batch in _run(schedule, 400):
        names = {location.shard.bucket for location in batch}
        assert len(names) == 1
        buckets += names
    assert Counter(buckets)["a"] / 400 == pytest.approx(0.75, abs=0.06)


def test_every_bucket_has_its_own_batch_size(manifest: Manifest) -> None:
    shards = with_shards(manifest, a_1=30, b_1=10)
    one, other = proportional_shares(bucket_sizes(shards, "train"), BatchSize(8, 2))
    draws = (one, replace(other, batch=BatchSize(4, 1)))
    schedule = Schedule([shards], draws, seed=0, shuffle_window_shards=2, split="train")
    steps = _steps(schedule, 20)
    assert {(step.bucket, len(step.samples)) for step in steps} == {("a", 8), ("b", 4)}
    for step in steps:
        shares = [list(step.micro_batches_of(rank, 2)) for rank in range(2)]
        micro = step.size.micro_batch
        assert [len(batch.samples) for batch in shares[1]] == [micro, micro]
        assert [batch.micro.is_last for batch in shares[0]] == [False, True]
        taken = [batch for pair in zip(*shares, strict=True) for batch in pair]
        assert [one for batch in taken for one in batch.samples] == list(step.samples)
        assert [batch.samples[0].number - step.samples[0].number for batch in taken] == [
            0,
            micro,
            2 * micro,
            3 * micro,
        ]
    assert steps[-1].position.images_seen == sum(len(step.samples) for step in steps)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7])
def test_a_step_is_divided_among_any_number_of_workers(manifest: Manifest, world_size: int) -> None:
    shards = with_shards(manifest, a_1=30)
    draws = proportional_shares(bucket_sizes(shards, "train"), BatchSize(8, 2))
    (step,) = _steps(Schedule([shards], draws, seed=0, shuffle_window_shards=2, split="train"), 1)
    shares = [list(step.micro_batches_of(rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    taken = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert all(1 <= len(batch.samples) <= 2 for batch in taken)
    used = [batch for batch in taken if batch.micro.weight]
    assert [one for batch in used for one in batch.samples] == list(step.samples)
    for batch in used:  # every sample counts alike in the mean over workers and micro batches
        each = batch.micro.weight / batch.micro.count / world_size / len(batch.samples)
        assert each == pytest.approx(1 / 8)


def test_a_saved_position_resumes_exactly(manifest: Manifest) -> None:
    shards = with_shards(manifest, a_1=5, a_2=3, b_1=7)
    whole = _steps(_schedule(shards), 20)
    assert _steps(_schedule(shards), 11, whole[8].position) == whole[9:]


def test_replacements_are_all_other_samples_of_the_bucket_the_near_ones_first(
    manifest: Manifest,
) -> None:
    shards = with_shards(manifest, a_1=5, a_2=3, a_3=4, a_4=2, b_1=7)
    schedule = _schedule(shards)
    for number in (0, 6, 20):
        (own,) = _names((schedule.location("a", number),))
        found = _names(tuple(schedule.replacements("a", number)))
        assert len(found) == len(set(found)) == 13 and own not in found
        near = _window_paths(schedule, number, 1)
        together = sum(size.num_samples for size in shards.shards if size.path in near) - 1
        assert {path for path, _ in found[:together]} <= near
        again = itertools.islice(_schedule(shards).replacements("a", number), 3)
        assert _names(tuple(again)) == found[:3]


def test_a_split_without_samples_is_named(manifest: Manifest) -> None:
    with pytest.raises(FlowmapsrError, match="'validation' split"):
        bucket_sizes(manifest, "validation")

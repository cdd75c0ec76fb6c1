"""Which sample comes when: every one exactly once an epoch, whatever the number of workers."""

from __future__ import annotations

from collections import Counter

import pytest

from datagen.errors import FlowmapsrError
from datagen.manifest import Manifest, ShardRecord
from training.schedule import Place, Position, Schedule

START = Position()


def _with_buckets(manifest: Manifest, **sizes: int) -> Manifest:
    """The manifest with shards of the given sizes, named after their bucket and number."""
    shards = tuple(
        ShardRecord(
            path=name,
            sha256="",
            bytes=1,
            num_samples=size,
            bucket=name.split("_")[0],
            split="train",
        )
        for name, size in sizes.items()
    )
    return manifest.model_copy(update={"shards": shards})


def _schedule(manifest: Manifest, *, global_batch: int = 4, seed: int = 0) -> Schedule:
    return Schedule(manifest, global_batch=global_batch, seed=seed, shuffle_shards=2, split="train")


def _run(schedule: Schedule, steps: int, position: Position = START) -> list[list[Place]]:
    batches = []
    for _ in range(steps):
        places, position = schedule.global_batch_at(position)
        batches.append(places)
    return batches


def _names(places: list[Place]) -> list[tuple[str, int]]:
    return [(place.shard.path, place.index) for place in places]


def test_every_sample_comes_exactly_once_in_each_epoch(manifest: Manifest) -> None:
    schedule = _schedule(_with_buckets(manifest, a_1=5, a_2=3, a_3=4), global_batch=4)
    for epoch in range(3):
        batches = _run(schedule, 3 * (epoch + 1))[3 * epoch :]
        seen = Counter(name for batch in batches for name in _names(batch))
        assert len(seen) == 12 and set(seen.values()) == {1}


def test_no_sample_is_lost_where_a_batch_crosses_the_end_of_an_epoch(manifest: Manifest) -> None:
    schedule = _schedule(_with_buckets(manifest, a_1=5, a_2=2), global_batch=4)
    seen = Counter(name for batch in _run(schedule, 7) for name in _names(batch))
    assert set(seen.values()) == {4} and len(seen) == 7


def test_epochs_and_seeds_have_different_orders(manifest: Manifest) -> None:
    one_bucket = _with_buckets(manifest, a_1=16, a_2=16)
    batches = _run(_schedule(one_bucket, global_batch=32), 2)
    assert _names(batches[0]) != _names(batches[1])
    other = _run(_schedule(one_bucket, global_batch=32, seed=1), 1)
    assert _names(other[0]) != _names(batches[0])


def test_a_batch_holds_one_bucket_and_buckets_come_by_their_size(manifest: Manifest) -> None:
    schedule = _schedule(_with_buckets(manifest, a_1=30, b_1=10))
    buckets = []
    for batch in _run(schedule, 400):
        names = {place.shard.bucket for place in batch}
        assert len(names) == 1
        buckets += names
    assert Counter(buckets)["a"] / 400 == pytest.approx(0.75, abs=0.06)


def test_a_saved_position_goes_on_exactly(manifest: Manifest) -> None:
    sizes = {"a_1": 5, "a_2": 3, "b_1": 7}
    whole = _run(_schedule(_with_buckets(manifest, **sizes)), 20)
    schedule, position = _schedule(_with_buckets(manifest, **sizes)), Position()
    for _ in range(9):
        _, position = schedule.global_batch_at(position)
    assert _run(_schedule(_with_buckets(manifest, **sizes)), 11, position) == whole[9:]


def test_a_split_without_samples_is_named(manifest: Manifest) -> None:
    with pytest.raises(FlowmapsrError, match="'validation' split"):
        Schedule(manifest, global_batch=1, seed=0, shuffle_shards=1, split="validation")

"""Shards to batches: contents, split over workers, prefetching, faults."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, stored_latents, write_latents
from datagen.errors import FlowmapsrError
from datagen.io.prefetch import WorkerThreads
from datagen.samples.codecs import DctCodec
from tests.support.tiny import rewritten, with_shards
from training.data.bucket_mix import bucket_sizes, proportional_shares
from training.data.loader import SHARDS_AHEAD, Batch, BatchLoader, BatchReader, Source
from training.data.planned import Position, SampleLocation
from training.data.schedule import Schedule
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.stage import BatchSize

START = Position()
ALL = BatchFields(("hq", "lq", "neg"), hq_pixels=True)


def _take(
    dataset: Path,
    manifest: Manifest,
    count: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int = 4,
    position: Position = START,
    threads: int = 2,
    wanted: BatchFields = ALL,
) -> list[Batch]:
    draws = proportional_shares(bucket_sizes(manifest, "train"), BatchSize(4, micro_batch))
    schedule = Schedule([manifest], draws, seed=3, shuffle_window_shards=2, split="train")
    reader = BatchReader(
        [Source(ShardStore(str(dataset)))], schedule, manifest.codec, fields=wanted
    )
    loader = BatchLoader(reader, rank=rank, world_size=world_size, threads=threads)
    batches = loader.batches(position)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_batches_hold_float32_latents_and_registered_pixels(
    dataset: Path, manifest: Manifest
) -> None:
    (stored,) = _take(dataset, manifest, 1)
    batch = stored.to(torch.device("cpu"))
    assert batch.hq.shape == batch.lq.shape == batch.latents["neg"].shape == (4, 192, 4, 4)
    assert batch.hq.dtype == torch.float32 and torch.equal(batch.hq, stored.hq.float())
    pixels = batch.hq_pixels
    assert pixels is not None
    assert pixels.shape == (4, 3, 32, 32) and pixels.dtype == torch.uint8
    decoded = (DctCodec().decode(batch.hq) + 1) * 127.5
    # hq.jpg is the same crop, but for JPEG at quality 95; another sample's is far away.
    assert (decoded - pixels.float()).abs().mean() < 4
    assert (decoded - pixels.float().roll(1, dims=0)).abs().mean() > 20


def test_an_epoch_is_every_key_of_the_dataset_once(dataset: Path, manifest: Manifest) -> None:
    keys = [key for batch in _take(dataset, manifest, 3) for key in batch.keys]
    assert len(keys) == len(set(keys)) == manifest.num_samples == 12


@pytest.mark.parametrize(("workers", "micro_batch"), [(2, 2), (2, 1), (4, 1)])
def test_workers_share_the_global_batch_of_one_worker(
    dataset: Path, manifest: Manifest, workers: int, micro_batch: int
) -> None:
    whole = [batch.keys for batch in _take(dataset, manifest, 3)]
    accumulation = 4 // (workers * micro_batch)
    shares = [
        _take(
            dataset,
            manifest,
            3 * accumulation,
            rank=rank,
            world_size=workers,
            micro_batch=micro_batch,
        )
        for rank in range(workers)
    ]
    for step in range(3):
        together: list[str] = []
        for micro in range(accumulation):
            for share in shares:
                together += share[step * accumulation + micro].keys
        assert tuple(together) == whole[step]


def test_a_loader_resumes_from_a_batchs_position(dataset: Path, manifest: Manifest) -> None:
    whole = _take(dataset, manifest, 6)
    rest = _take(dataset, manifest, 3, position=whole[2].position)
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[3:]]


def _same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        mine.keys == theirs.keys
        and mine.skipped == theirs.skipped
        and torch.equal(mine.hq, theirs.hq)
        and torch.equal(mine.latents["neg"], theirs.latents["neg"])
        and torch.equal(mine.hq_pixels, theirs.hq_pixels)
        for mine, theirs in zip(one, other, strict=True)
    )


def test_batches_do_not_depend_on_the_threads(dataset: Path, manifest: Manifest) -> None:
    one, several = (_take(dataset, manifest, 7, threads=threads) for threads in (1, 5))
    assert _same(one, several)


def test_an_epoch_stays_complete_when_the_number_of_workers_changes(
    dataset: Path, manifest: Manifest
) -> None:
    (alone,) = _take(dataset, manifest, 1)
    rest = [
        _take(dataset, manifest, 2, rank=rank, world_size=4, micro_batch=1, position=alone.position)
        for rank in range(4)
    ]
    keys = [key for batch in [alone, *itertools.chain(*rest)] for key in batch.keys]
    assert len(keys) == len(set(keys)) == manifest.num_samples == 12


def test_only_requested_fields_are_decoded(dataset: Path, manifest: Manifest) -> None:
    (batch,) = _take(dataset, manifest, 1, wanted=BatchFields())
    assert batch.latents.keys() == {"hq", "lq"} and batch.hq.shape == (4, 192, 4, 4)
    assert batch.hq_pixels is None


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(_flip, "checksum differs"), (_cut, "checksum"), (Path.unlink, "no such file")],
)
def test_samples_of_a_damaged_shard_are_replaced(
    dataset: Path,
    manifest: Manifest,
    tmp_path: Path,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    damaged = manifest.shards[1]
    damage(copy / damaged.path)
    batches = _take(copy, manifest, 3)
    lost = {sample.key for sample in read_shard(str(dataset / damaged.path))}
    for whole, batch in zip(_take(dataset, manifest, 3), batches, strict=True):
        kept = [(a, b) for a, b in zip(whole.keys, batch.keys, strict=True) if a not in lost]
        assert all(a == b for a, b in kept) and lost.isdisjoint(batch.keys)
        assert bool(batch.skipped) == (len(kept) < 4)
    (skipped,) = {skipped for batch in batches for skipped in batch.skipped}
    assert (skipped.shard, skipped.index, skipped.samples) == (damaged.path, None, 4)
    assert reason in skipped.reason
    assert _same(_take(copy, manifest, 3, threads=1), batches)
    shares = [_take(copy, manifest, 3, rank=rank, world_size=2, micro_batch=2) for rank in (0, 1)]
    together = [one.keys + other.keys for one, other in zip(*shares, strict=True)]
    assert together == [batch.keys for batch in batches]


def _broken(sample: ShardSample, how: int) -> ShardSample:
    latents = stored_latents(sample)
    match how:
        case 0:
            neg = latents["neg"].copy()
            neg[-1, -1, -1] = np.inf
            return replace(sample, latents=write_latents(latents | {"neg": neg}))
        case 1:
            some = {name: latents[name] for name in ("hq", "neg")}
            return replace(sample, latents=write_latents(some))
        case 2:
            assert sample.hq_image is not None
            return replace(sample, hq_image=sample.hq_image[:20])
        case _:
            return replace(sample, latents=sample.latents[:400])


def test_invalid_samples_are_skipped_with_the_reason(
    dataset: Path, manifest: Manifest, tmp_path: Path
) -> None:
    spoilt = read_shard(str(dataset / manifest.shards[0].path))
    numbers = {sample.key: number for number, sample in enumerate(spoilt)}

    def change(sample: ShardSample) -> ShardSample:
        return _broken(sample, numbers[sample.key]) if sample.key in numbers else sample

    copy = rewritten(dataset, tmp_path / "dataset", change)
    batches = _take(copy, load_manifest(str(copy)), 3)
    assert numbers.keys().isdisjoint(key for batch in batches for key in batch.keys)
    found = {skipped.key: skipped for batch in batches for skipped in batch.skipped}
    assert found.keys() == numbers.keys()
    reasons = [found[sample.key].reason for sample in spoilt]
    for reason, expected in zip(
        reasons, ("neg holds values that are", "no tensor lq", "HQ pixels cannot", ""), strict=True
    ):
        assert expected in reason
    assert all((one.samples, one.shard) == (1, manifest.shards[0].path) for one in found.values())


def test_a_bucket_without_a_usable_sample_is_an_error(
    dataset: Path, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(FlowmapsrError, match=r"bucket 32x32: 3 samples or shards in a row cannot"):
        _take(tmp_path, manifest, 1)


def test_shards_are_fetched_in_the_order_in_which_steps_need_them(manifest: Manifest) -> None:
    sizes = {"32x32_1": 8, "32x32_2": 8, "32x32_3": 8, "64x64_1": 4, "64x64_2": 4}
    shards = with_shards(manifest, **sizes)
    draws = proportional_shares(bucket_sizes(shards, "train"), BatchSize(4, 4))
    schedule = Schedule([shards], draws, seed=3, shuffle_window_shards=1, split="train")
    reader = BatchReader([Source(ShardStore("nowhere"))], schedule, shards.codec, fields=ALL)
    loader = BatchLoader(reader, rank=0, world_size=1, threads=1)
    fetched: list[str] = []
    crew = WorkerThreads(lambda first: fetched.append(first.shard.path), threads=1, name="test")
    next(loader._plans(START, crew))
    crew.submit(SampleLocation(shards.shards[0], 0)).result(60)  # after all others
    crew.stop()
    needed: dict[str, list[str]] = {"32x32": [], "64x64": []}
    order, position = [], START
    for _ in range(SHARDS_AHEAD):
        step = loader.reader.schedule.step_at(position)
        position = step.position
        for wanted in step.samples:
            location = loader.reader.schedule.location(*wanted)
            if needed[step.bucket][-1:] != [location.shard.path]:
                needed[step.bucket].append(location.shard.path)
                order.append(location.shard.path)
    assert fetched[:-1] == order and len(set(order)) == 5

"""Really built shards to batches: contents, split over workers, read-ahead, faults."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from datagen.codecs import Dct8Codec
from datagen.errors import FlowmapsrError
from datagen.manifest import Manifest
from training.batch_settings import BatchSize
from training.decoding import Wanted
from training.draws import bucket_sizes, proportional_draws
from training.loader import Batch, LatentLoader, fixed_batch
from training.schedule import Position
from training.shard_store import ShardStore

START = Position()


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
) -> list[Batch]:
    draws = proportional_draws(bucket_sizes(manifest, "train"), BatchSize(4, micro_batch))
    loader = LatentLoader(
        ShardStore(str(dataset)),
        manifest,
        draws,
        wanted=Wanted(neg=True, pixels=True),
        threads=threads,
        rank=rank,
        world_size=world_size,
        seed=3,
        shuffle_shards=2,
    )
    batches = loader.batches(position)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_batches_hold_float32_latents_and_registered_pixels(
    dataset: Path, manifest: Manifest
) -> None:
    (stored,) = _take(dataset, manifest, 1)
    batch = stored.to(torch.device("cpu"))
    assert batch.hq.shape == batch.lq.shape == batch.neg.shape == (4, 192, 4, 4)
    assert batch.hq.dtype == torch.float32 and torch.equal(batch.hq, stored.hq.float())
    pixels = batch.require_pixels()
    assert pixels.shape == (4, 3, 32, 32) and pixels.dtype == torch.uint8
    decoded = (Dct8Codec().decode(batch.hq) + 1) * 127.5
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


def test_a_loader_goes_on_from_a_batchs_position(dataset: Path, manifest: Manifest) -> None:
    whole = _take(dataset, manifest, 6)
    rest = _take(dataset, manifest, 3, position=whole[2].position)
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[3:]]


def test_a_flipped_bit_in_a_shard_is_an_error_that_names_it(
    dataset: Path, manifest: Manifest, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    shard = copy / manifest.shards[0].path
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FlowmapsrError, match=Path(manifest.shards[0].path).name):
        _take(copy, manifest, 3)


def test_a_missing_shard_is_an_error_that_names_it(
    dataset: Path, manifest: Manifest, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    (copy / manifest.shards[1].path).unlink()
    with pytest.raises(FlowmapsrError, match=Path(manifest.shards[1].path).name):
        _take(copy, manifest, 3)


def test_pictures_always_show_the_same_samples(dataset: Path, manifest: Manifest) -> None:
    first, second = (fixed_batch(ShardStore(str(dataset)), manifest, 3) for _ in range(2))
    assert first.keys == second.keys and len(first.keys) == 3

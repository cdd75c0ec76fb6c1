"""Real pairs whose photos are in S3, built there, and read from there beside a degraded dataset."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Dataset, open_dataset
from datagen.dataset.records import DrawnSample
from datagen.io import storage
from datagen.review.recompute import recompute_samples
from datagen.settings import DatasetRecipe
from tests.support.pair_pictures import pairs_of, write_pair
from tests.support.s3 import FaultyS3
from tests.support.tiny import WARMUP, write_photos
from training.data.bucket_mix import bucket_shares
from training.data.loader import Batch, BatchLoader, BatchReader, Source
from training.data.mixture import check_mixture
from training.data.planned import Position
from training.data.schedule import Schedule
from training.data.shard_cache import ShardCache
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.stage import StageSettings

STAGE = StageSettings.model_validate(WARMUP | {"global_batch": 4, "micro_batch": 4})
FIELDS = BatchFields(latents=("hq", "lq"), hq_pixels=True)


def _copied(dataset: Dataset, folder: Path) -> Dataset:
    """The same dataset on this disk."""
    for uri in storage.list_files(dataset.root):
        storage.write_bytes(f"{folder}/{uri.removeprefix(dataset.root)}", storage.read_bytes(uri))
    return open_dataset(str(folder))


def _batches(datasets: Sequence[Dataset], cache: ShardCache | None, count: int) -> list[Batch]:
    manifests = [one.manifest for one in datasets]
    shares = bucket_shares(STAGE, manifests, [1, 3])
    schedule = Schedule(manifests, shares, seed=0, shuffle_window_shards=2, split="train")
    sources = [Source(ShardStore(root, cache=cache)) for _, root in datasets]
    reader = BatchReader(sources, schedule, manifests[0].codec, FIELDS)
    loader = BatchLoader(reader, rank=0, world_size=1, threads=2)
    return list(itertools.islice(loader.batches(Position()), count))


def test_pairs_and_photos_in_s3_are_one_mixture(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    bucket = f"s3://{faulty_s3.bucket}"
    (tmp_path / "pairs").mkdir()
    for number in range(2):
        write_pair(tmp_path / "pairs", number)
    for path in (tmp_path / "pairs").iterdir():
        storage.write_bytes(f"{bucket}/photos/{path.name}", path.read_bytes())
    common = {
        "buckets": {"budgets": [{"side": 64}], "max_aspect_ratio": 1},
        "latents": ("hq", "lq"),
        "samples_per_photo": 2,
        "samples_per_shard": 2,
    }
    remote = {"hq": f"{bucket}/photos", "lq": f"{bucket}/photos"}
    pairs = {**common, "pairs": pairs_of(tmp_path) | remote, "output": f"{bucket}/pairs"}
    photos = {"sources": [str(write_photos(tmp_path / "photos", 2))], "output": f"{bucket}/plain"}
    datasets = []
    for fields in (pairs, {**common, **photos}):
        recipe = DatasetRecipe.model_validate(fields)
        build_in_process(recipe)
        datasets.append(open_dataset(recipe.output))
    check_mixture(STAGE, datasets)
    found = _batches(datasets, ShardCache(tmp_path / "cache", limit=10**9), 4)
    for batch in found:
        drawn = [DrawnSample.model_validate_json(meta) for meta in batch.meta]
        assert sorted(one.real_lq is not None for one in drawn) == [False, False, False, True]
    here = [_copied(one, tmp_path / f"copy-{n}") for n, one in enumerate(datasets)]
    for batch, local in zip(found, _batches(here, None, 4), strict=True):
        assert batch.keys == local.keys and batch.position == local.position
        assert all(torch.equal(batch.latents[name], local.latents[name]) for name in ("hq", "lq"))
    for path in ("0_LR4.png", "1_LR4.png"):
        storage.delete(f"{bucket}/photos/{path}")
    issues, not_made = recompute_samples(f"{bucket}/pairs")
    missing = {what for one in not_made for what in one.missing}
    assert issues == []
    assert missing == {f"{bucket}/photos/{n}_LR4.png, its LQ, is gone" for n in range(2)}

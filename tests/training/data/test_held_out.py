"""Which held-out samples validation restores, and in which groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Manifest, open_dataset
from datagen.dataset.shard_index import read_shard
from tests.support.tiny import dataset_recipe, with_shards, write_photos
from training.data.held_out import held_out_groups, held_out_reader
from training.data.shard_store import ShardStore
from training.settings.recipe import SampleCount


def test_the_whole_split_is_read_in_the_order_of_its_shards(tmp_path: Path) -> None:
    made = dataset_recipe(write_photos(tmp_path / "photos", 8), tmp_path / "dataset")
    build_in_process(made.model_copy(update={"validation_fraction": 0.5}))
    dataset = open_dataset(made.output)
    shards = [one for one in dataset.manifest.shards if one.split == "validation"]
    assert len(shards) > 1
    expected = [sample.key for one in shards for sample in read_shard(f"{dataset.root}/{one.path}")]
    reader = held_out_reader([ShardStore(dataset.root)], [dataset], "all")
    batches = [reader.read(group) for group in held_out_groups([dataset.manifest], "all")]
    assert [key for batch in batches for key in batch.keys] == expected


def _held_out(manifest: Manifest, **sizes: int) -> Manifest:
    shards = [
        shard.model_copy(update={"split": "validation"})
        for shard in with_shards(manifest, **sizes).shards
    ]
    return manifest.model_copy(update={"shards": (*shards, *manifest.shards)})


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (14, {"256x256": [0, 5, 10], "512x512": [0, 2, 3], "1024x1024": [0, 1]}),
        (7, {"256x256": [0, 3, 5], "512x512": [0, 1, 2]}),
        ("all", {"256x256": [0, 7, 14, 20], "512x512": [0, 2, 4, 6], "1024x1024": [0, 1]}),
        (1000, {"256x256": [0, 7, 14, 20], "512x512": [0, 2, 4, 6], "1024x1024": [0, 1]}),
    ],
)
def test_buckets_give_samples_in_proportion_in_groups_of_few_pixels(
    manifest: Manifest, samples: SampleCount, expected: dict[str, list[int]]
) -> None:
    data = _held_out(manifest, **{"256x256_0": 20, "512x512_0": 6, "1024x1024_0": 1})
    found: dict[str, list[int]] = {}
    for group in held_out_groups([data], samples):
        edges = found.setdefault(group.bucket, [0])
        assert edges[-1] == group.samples[0].number
        edges.append(group.samples[-1].number + 1)
    assert found == expected

"""Which held-out samples validation restores, and in which groups."""

from __future__ import annotations

import pytest

from datagen.dataset.manifest import Manifest
from tests.support.tiny import with_shards
from training.data.held_out import held_out_groups


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
        (1000, {"256x256": [0, 7, 14, 20], "512x512": [0, 2, 4, 6], "1024x1024": [0, 1]}),
    ],
)
def test_buckets_give_samples_in_proportion_in_groups_of_few_pixels(
    manifest: Manifest, samples: int, expected: dict[str, list[int]]
) -> None:
    data = _held_out(manifest, **{"256x256_0": 20, "512x512_0": 6, "1024x1024_0": 1})
    found: dict[str, list[int]] = {}
    for group in held_out_groups(data, samples):
        edges = found.setdefault(group.bucket, [0])
        assert edges[-1] == group.numbers.start
        edges.append(group.numbers.stop)
    assert found == expected

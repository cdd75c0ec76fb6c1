"""Shards made of given samples."""

from __future__ import annotations

from collections.abc import Iterable

from datagen.dataset.manifest import load_manifest
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, WrittenShard, open_shard


def write_shard(uri: str, samples: Iterable[ShardSample]) -> WrittenShard:
    """Writes the samples into a tar that appears at `uri` once all are in, not if one raises."""
    with open_shard(uri) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.close()


def sample_keys(dataset: str) -> list[str]:
    """Keys of all samples of a dataset in their order."""
    shards = load_manifest(dataset).shards
    return [sample.key for shard in shards for sample in read_shard(f"{dataset}/{shard.path}")]

"""Which samples make the global batch of a step: a pure function of manifest, seed and position.

The order does not depend on the number of workers, so a run can go on with another: in every epoch
    of a bucket each of its samples comes exactly once. Knows no file contents and no tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datagen.errors import FlowmapsrError
from datagen.manifest import Manifest, ShardRecord


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends only on `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class Place:
    """Where a sample lies: a shard and its index inside it."""

    shard: ShardRecord
    index: int


@dataclass(frozen=True)
class Position:
    """How far a run has read: what a checkpoint keeps of the loader."""

    step: int = 0
    consumed: tuple[tuple[str, int], ...] = ()
    """Samples taken so far from each bucket."""

    def taken(self, bucket: str) -> int:
        return dict(self.consumed).get(bucket, 0)

    def advanced(self, bucket: str, count: int) -> Position:
        """The position after one more step that took `count` samples of `bucket`."""
        counts = dict(self.consumed)
        counts[bucket] = counts.get(bucket, 0) + count
        return Position(self.step + 1, tuple(sorted(counts.items())))


class Schedule:
    """The endless sequence of global batches; each batch holds samples of one bucket."""

    def __init__(
        self, manifest: Manifest, *, global_batch: int, seed: int, shuffle_shards: int, split: str
    ) -> None:
        """
        Args:
            shuffle_shards: samples mix inside windows of this many shards, which are kept in
                memory.
        """
        self.global_batch = global_batch
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self._shards: dict[str, list[ShardRecord]] = {}
        for shard in manifest.shards:
            if shard.split == split and shard.num_samples:
                self._shards.setdefault(shard.bucket, []).append(shard)
        if not self._shards:
            raise FlowmapsrError(
                f"the dataset has no sample in its {split!r} split; build it with more photos or "
                "another validation_fraction"
            )
        self._sizes = {
            bucket: sum(shard.num_samples for shard in shards)
            for bucket, shards in sorted(self._shards.items())
        }
        self._epoch_order = lru_cache(maxsize=2 * len(self._sizes))(self._shuffled)

    def bucket(self, step: int) -> str:
        """The bucket of a step, drawn in proportion to the buckets' sizes."""
        sizes = np.array(list(self._sizes.values()), dtype=np.float64)
        rng = seeded(self.seed, "bucket", step)
        return list(self._sizes)[rng.choice(len(sizes), p=sizes / sizes.sum())]

    def global_batch_at(self, position: Position) -> tuple[list[Place], Position]:
        """The samples of the next step and the position after it."""
        bucket = self.bucket(position.step)
        start = position.taken(bucket)
        places = [self._place(bucket, start + i) for i in range(self.global_batch)]
        return places, position.advanced(bucket, self.global_batch)

    def _place(self, bucket: str, number: int) -> Place:
        epoch, offset = divmod(number, self._sizes[bucket])
        return self._epoch_order(bucket, epoch)[offset]

    def _shuffled(self, bucket: str, epoch: int) -> list[Place]:
        rng = seeded(self.seed, "epoch", bucket, epoch)
        shards = self._shards[bucket]
        shuffled = [shards[i] for i in rng.permutation(len(shards))]
        order: list[Place] = []
        for first in range(0, len(shuffled), self.shuffle_shards):
            window = shuffled[first : first + self.shuffle_shards]
            places = [Place(shard, i) for shard in window for i in range(shard.num_samples)]
            order += [places[i] for i in rng.permutation(len(places))]
        return order

"""Which samples make the global batch of a step: a pure function of manifest, seed and position.

The order does not depend on the number of workers, so a run can resume with another number: in
every epoch of a bucket each of its samples is used exactly once. Memory: a few windows of sample
locations per bucket and a few numbers per shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import ShardRecord, Split
from training.data.bucket_mix import BucketShare
from training.settings.stage import BatchSize


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends only on `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class SampleLocation:
    """A shard and the index of a sample inside it."""

    shard: ShardRecord
    index: int


@dataclass(frozen=True)
class Position:
    """How far a run has read; the loader's part of a checkpoint."""

    step: int = 0
    consumed: tuple[tuple[str, int], ...] = ()
    """Samples taken so far from each bucket."""

    @property
    def images_seen(self) -> int:
        """Samples used by all steps so far, counting repetitions."""
        return sum(count for _, count in self.consumed)

    def advanced(self, bucket: str, count: int) -> Position:
        """The position after one more step that took `count` samples of `bucket`."""
        counts = dict(self.consumed)
        counts[bucket] = counts.get(bucket, 0) + count
        return Position(self.step + 1, tuple(sorted(counts.items())))


@dataclass(frozen=True)
class MicroStep:
    """The index of a micro batch among those of one worker in one step."""

    index: int = 0
    count: int = 1
    weight: float = 1.0
    """Its samples over those of an even share; 0 for a filler that only keeps workers in step."""
    first: int = 0
    """The place of its first sample among those of the step."""
    samples: int | None = None
    """Of the step, all workers together; None where the step has no others."""

    def of_step(self, size: int) -> int:
        """Samples of the step, given those of this micro batch."""
        return size if self.samples is None else self.samples

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


@dataclass(frozen=True)
class PlannedBatch:
    """A micro batch of one worker, not yet read."""

    bucket: str
    numbers: range
    """Of its samples in the bucket's endless sequence."""
    micro: MicroStep
    position: Position
    """After the step it belongs to."""


@dataclass(frozen=True)
class PlannedStep:
    """The global batch of a step."""

    bucket: str
    numbers: range
    """Of its samples in the bucket's endless sequence."""
    size: BatchSize
    position: Position
    """After this step."""

    def micro_batches_of(self, rank: int, world_size: int) -> Iterator[PlannedBatch]:
        """The micro batches of one worker: micro batch j goes to worker j mod world_size.

        All workers get the same number of micro batches, since each one is a collective backward
        pass: a worker that made fewer would leave the others waiting. The global batch is split
        into that many parts as evenly as possible, so any number of workers up to the global
        batch works. A part's weight is its size over the mean size, which makes the mean of the
        parts' mean losses the mean over samples. Parts without a sample repeat one at weight 0.
        """
        count = self.size.accumulation(world_size)
        total, parts = len(self.numbers), count * world_size
        for index in range(count):
            part = index * world_size + rank
            start, end = (total * edge // parts for edge in (part, part + 1))
            yield PlannedBatch(
                self.bucket,
                self.numbers[start : max(end, start + 1)],
                MicroStep(index, count, (end - start) * parts / total, start, total),
                self.position,
            )


@dataclass(frozen=True)
class _Epoch:
    """One pass over a bucket: its shards in a new order, split into windows."""

    windows: list[list[ShardRecord]]
    ends: np.ndarray
    """Cumulative samples, including each window."""


class Schedule:
    """The endless sequence of global batches; each batch has samples of one bucket."""

    def __init__(
        self,
        manifest: Manifest,
        shares: tuple[BucketShare, ...],
        *,
        seed: int,
        shuffle_window_shards: int,
        split: Split,
        in_order: bool = False,
    ) -> None:
        """
        Args:
            shares: of buckets that have samples in the split.
            shuffle_window_shards: shards per window; samples are shuffled within a window.
            in_order: nothing is shuffled: the samples of a bucket come as the shards hold them.
        """
        self.shares = {share.bucket: share for share in shares}
        self.seed = seed
        self.split = split
        self.shuffle_window_shards = shuffle_window_shards
        self.in_order = in_order
        self._shards: dict[str, list[ShardRecord]] = {bucket: [] for bucket in self.shares}
        for shard in manifest.shards:
            if shard.split == split and shard.num_samples and shard.bucket in self.shares:
                self._shards[shard.bucket].append(shard)
        self._sizes = {
            bucket: sum(shard.num_samples for shard in shards)
            for bucket, shards in self._shards.items()
        }
        # At the border between two, both are in use.
        self._epoch = lru_cache(maxsize=2 * len(shares))(self._shuffled_epoch)
        self._window = lru_cache(maxsize=4 * len(shares))(self._shuffled_window)

    def step_at(self, position: Position) -> PlannedStep:
        """The step at `position`, the same on every worker."""
        chances = np.array([share.probability for share in self.shares.values()])
        rng = seeded(self.seed, "bucket", position.step)
        bucket = list(self.shares)[rng.choice(len(chances), p=chances / chances.sum())]
        size = self.shares[bucket].batch
        after = position.advanced(bucket, size.global_batch)
        first = dict(position.consumed).get(bucket, 0)
        return PlannedStep(bucket, range(first, first + size.global_batch), size, after)

    def windows(self, step: PlannedStep) -> Iterator[list[ShardRecord]]:
        """The windows of shards a step reads from; a new epoch may repeat one."""
        number = step.numbers.start
        while number < step.numbers.stop:
            epoch, window, offset = self._find(step.bucket, number)
            found = self._epoch(step.bucket, epoch).windows[window]
            yield found
            number += sum(shard.num_samples for shard in found) - offset

    def replacements(self, bucket: str, number: int) -> Iterator[SampleLocation]:
        """All other samples of the bucket, in the order in which they replace an unusable one:
        those of its own window first, since those shards are open already."""
        epoch, own, offset = self._find(bucket, number)
        mine = self._window(bucket, epoch, own)[offset]
        count = len(self._epoch(bucket, epoch).windows)
        for turn in range(count):
            locations = self._window(bucket, epoch, (own + turn) % count)
            rng = seeded(self.seed, "replacement", bucket, number, turn)
            yield from (
                locations[i] for i in rng.permutation(len(locations)) if locations[i] != mine
            )

    def epoch(self, bucket: str, number: int) -> int:
        """How often all samples of the bucket came before this one of its sequence."""
        return number // self._sizes[bucket]

    def location(self, bucket: str, number: int) -> SampleLocation:
        """A sample of the bucket's sequence."""
        epoch, window, offset = self._find(bucket, number)
        return self._window(bucket, epoch, window)[offset]

    def _find(self, bucket: str, number: int) -> tuple[int, int, int]:
        """Epoch and window of a sample of the sequence, and its index in the window."""
        epoch, offset = divmod(number, self._sizes[bucket])
        ends = self._epoch(bucket, epoch).ends
        window = int(np.searchsorted(ends, offset, side="right"))
        return epoch, window, offset - int(ends[window - 1]) if window else offset

    def _shuffled_epoch(self, bucket: str, epoch: int) -> _Epoch:
        shards, size = self._shards[bucket], self.shuffle_window_shards
        order = self._order(len(shards), "epoch", bucket, epoch)
        shuffled = [shards[i] for i in order]
        windows = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        samples = [sum(shard.num_samples for shard in window) for window in windows]
        return _Epoch(windows, np.cumsum(samples))

    def _shuffled_window(self, bucket: str, epoch: int, window: int) -> list[SampleLocation]:
        shards = self._epoch(bucket, epoch).windows[window]
        locations = [SampleLocation(shard, i) for shard in shards for i in range(shard.num_samples)]
        order = self._order(len(locations), "window", bucket, epoch, window)
        return [locations[i] for i in order]

    def _order(self, count: int, *what: object) -> np.ndarray:
        return np.arange(count) if self.in_order else seeded(self.seed, *what).permutation(count)

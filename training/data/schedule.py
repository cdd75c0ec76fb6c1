"""Which samples make the global batch of a step: a pure function of manifest, seed and position.

The order does not depend on the number of workers, so a run can go on with another: in every epoch
of a bucket each of its samples comes exactly once. Knows no file contents and no tensors. Memory: a
few windows of places for each bucket, and for each shard a few numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import ShardRecord, Split
from training.data.bucket_mix import BucketDraw
from training.settings.stage import BatchSize


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

    @property
    def images_seen(self) -> int:
        """Samples that all steps so far were made of, with repetitions."""
        return sum(count for _, count in self.consumed)

    def taken(self, bucket: str) -> int:
        return dict(self.consumed).get(bucket, 0)

    def advanced(self, bucket: str, count: int) -> Position:
        """The position after one more step that took `count` samples of `bucket`."""
        counts = dict(self.consumed)
        counts[bucket] = counts.get(bucket, 0) + count
        return Position(self.step + 1, tuple(sorted(counts.items())))


@dataclass(frozen=True)
class MicroStep:
    """Which of one worker's micro batches of a step this is."""

    index: int = 0
    count: int = 1
    weight: float = 1.0
    """Its samples over those of an even share; 0 for one that only keeps step with the others."""

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


@dataclass(frozen=True)
class StepDraw:
    """Which part of which bucket's endless sequence a step takes."""

    bucket: str
    first: int
    """Number of its first sample; the others follow."""
    size: BatchSize
    position: Position
    """After this step."""


@dataclass(frozen=True)
class PlannedBatch:
    """A micro batch of one worker, not yet read."""

    bucket: str
    first: int
    """Number of its first sample in the bucket's endless sequence; the others follow."""
    places: tuple[Place, ...]
    micro: MicroStep
    position: Position
    """After the step that it belongs to."""


@dataclass(frozen=True)
class PlannedStep:
    """The global batch of a step."""

    bucket: str
    first: int
    places: tuple[Place, ...]
    size: BatchSize
    position: Position
    """After this step."""

    def share(self, rank: int, world_size: int) -> Iterator[PlannedBatch]:
        """The micro batches of one worker: number j of all goes to worker j mod world_size.

        Every worker gets equally many. Where a step has fewer samples than there are micro batches,
        the empty ones repeat a sample at weight 0.
        """
        count = self.size.accumulation(world_size)
        total, parts = len(self.places), count * world_size
        for index in range(count):
            part = index * world_size + rank
            start, end = (total * edge // parts for edge in (part, part + 1))
            yield PlannedBatch(
                self.bucket,
                self.first + start,
                self.places[start : max(end, start + 1)],
                MicroStep(index, count, weight=(end - start) * parts / total),
                self.position,
            )


@dataclass(frozen=True)
class _Epoch:
    """One pass through a bucket: its shards in a new order, cut into windows."""

    windows: list[list[ShardRecord]]
    ends: np.ndarray
    """Samples up to and with each window."""


class Schedule:
    """The endless sequence of global batches; each batch holds samples of one bucket."""

    def __init__(
        self,
        manifest: Manifest,
        draws: tuple[BucketDraw, ...],
        *,
        seed: int,
        shuffle_shards: int,
        split: Split,
    ) -> None:
        """
        Args:
            draws: of buckets that have samples in the split.
            shuffle_shards: samples mix inside windows of this many shards, which are read together.
        """
        self.draws = {draw.bucket: draw for draw in draws}
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self._shards: dict[str, list[ShardRecord]] = {bucket: [] for bucket in self.draws}
        for shard in manifest.shards:
            if shard.split == split and shard.num_samples and shard.bucket in self.draws:
                self._shards[shard.bucket].append(shard)
        self._sizes = {
            bucket: sum(shard.num_samples for shard in shards)
            for bucket, shards in self._shards.items()
        }
        # Two may be open at the border between them.
        self._epoch = lru_cache(maxsize=2 * len(draws))(self._shuffled_epoch)
        self._window = lru_cache(maxsize=4 * len(draws))(self._shuffled_window)

    def bucket(self, step: int) -> str:
        """The bucket of a step, the same on every worker."""
        chances = np.array([draw.probability for draw in self.draws.values()])
        rng = seeded(self.seed, "bucket", step)
        return list(self.draws)[rng.choice(len(chances), p=chances / chances.sum())]

    def draw_at(self, position: Position) -> StepDraw:
        """What the next step of a run that stands at `position` takes."""
        bucket = self.bucket(position.step)
        size = self.draws[bucket].batch
        after = position.advanced(bucket, size.global_batch)
        return StepDraw(bucket, position.taken(bucket), size, after)

    def step_at(self, position: Position) -> PlannedStep:
        """The next step of a run that stands at `position`."""
        draw = self.draw_at(position)
        numbers = range(draw.first, draw.first + draw.size.global_batch)
        places = tuple(self._place(draw.bucket, number) for number in numbers)
        return PlannedStep(draw.bucket, draw.first, places, draw.size, draw.position)

    def windows(self, draw: StepDraw) -> Iterator[list[ShardRecord]]:
        """The windows of shards that a step reads from; a new epoch may bring the same again."""
        number, end = draw.first, draw.first + draw.size.global_batch
        while number < end:
            epoch, window, offset = self._find(draw.bucket, number)
            found = self._epoch(draw.bucket, epoch).windows[window]
            yield found
            number += sum(shard.num_samples for shard in found) - offset

    def replacements(self, bucket: str, number: int) -> Iterator[Place]:
        """All other samples of the bucket, in the order in which they stand in for one that cannot
        be used: those that are read together with it come first."""
        epoch, own, offset = self._find(bucket, number)
        mine = self._window(bucket, epoch, own)[offset]
        count = len(self._epoch(bucket, epoch).windows)
        for turn in range(count):
            places = self._window(bucket, epoch, (own + turn) % count)
            rng = seeded(self.seed, "replacement", bucket, number, turn)
            yield from (places[i] for i in rng.permutation(len(places)) if places[i] != mine)

    def _place(self, bucket: str, number: int) -> Place:
        epoch, window, offset = self._find(bucket, number)
        return self._window(bucket, epoch, window)[offset]

    def _find(self, bucket: str, number: int) -> tuple[int, int, int]:
        """Epoch and window of a sample of the sequence, and where it comes inside the window."""
        epoch, offset = divmod(number, self._sizes[bucket])
        ends = self._epoch(bucket, epoch).ends
        window = int(np.searchsorted(ends, offset, side="right"))
        return epoch, window, offset - int(ends[window - 1]) if window else offset

    def _shuffled_epoch(self, bucket: str, epoch: int) -> _Epoch:
        shards, size = self._shards[bucket], self.shuffle_shards
        order = seeded(self.seed, "epoch", bucket, epoch).permutation(len(shards))
        shuffled = [shards[i] for i in order]
        windows = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        samples = [sum(shard.num_samples for shard in window) for window in windows]
        return _Epoch(windows, np.cumsum(samples))

    def _shuffled_window(self, bucket: str, epoch: int, window: int) -> list[Place]:
        shards = self._epoch(bucket, epoch).windows[window]
        places = [Place(shard, i) for shard in shards for i in range(shard.num_samples)]
        rng = seeded(self.seed, "window", bucket, epoch, window)
        return [places[i] for i in rng.permutation(len(places))]

"""What the schedule plans: samples by their place, steps and the micro batches of each worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from datagen.dataset.records import ShardRecord
from training.settings.stage import BatchSize


@dataclass(frozen=True)
class SampleLocation:
    """A shard and the index of a sample inside it."""

    shard: ShardRecord
    index: int
    source: int = 0
    """Index of the dataset that has the shard."""


class Numbered(NamedTuple):
    """A sample, by its place in the endless sequence of what a source has of a bucket."""

    part: str
    """See `part_name`."""
    number: int


def part_name(bucket: str, source: int) -> str:
    """The samples of a bucket that one source has: of the first, the name of the bucket."""
    return f"{bucket}@{source}" if source else bucket


def bucket_of(part: str) -> str:
    return part.partition("@")[0]


def source_of(part: str) -> int:
    return int(part.partition("@")[2] or 0)


@dataclass(frozen=True)
class Position:
    """How far a run has read; the loader's part of a checkpoint."""

    step: int = 0
    consumed: tuple[tuple[str, int], ...] = ()
    """Samples taken so far from each source of each bucket, by `part_name`."""

    @property
    def images_seen(self) -> int:
        """Samples used by all steps so far, counting repetitions."""
        return sum(count for _, count in self.consumed)

    def images_of(self, source: int) -> int:
        """Those of one source."""
        return sum(count for part, count in self.consumed if source_of(part) == source)


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
    samples: tuple[Numbered, ...]
    micro: MicroStep
    position: Position
    """After the step it belongs to."""


@dataclass(frozen=True)
class PlannedStep:
    """The global batch of a step."""

    bucket: str
    samples: tuple[Numbered, ...]
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
        total, parts = len(self.samples), count * world_size
        for index in range(count):
            part = index * world_size + rank
            start, end = (total * edge // parts for edge in (part, part + 1))
            yield PlannedBatch(
                self.bucket,
                self.samples[start : max(end, start + 1)],
                MicroStep(index, count, (end - start) * parts / total, start, total),
                self.position,
            )

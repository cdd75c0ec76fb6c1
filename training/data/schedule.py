"""Which samples make the global batch of a step: a pure function of manifests, seed and position.

The order does not depend on the number of workers, so a run can resume with another number. Each
source of a bucket has an endless sequence, in every epoch of which each of its samples is used
exactly once; `dealing.py` says from which source the next sample comes. Memory: a few windows of
sample locations per bucket and a few numbers per shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import Split
from training.data.bucket_mix import BucketShare
from training.data.dealing import deal
from training.data.planned import Numbered, PlannedStep, Position, SampleLocation, part_name
from training.data.seeded import seeded


@dataclass(frozen=True)
class _Epoch:
    """One pass over a source's part of a bucket: its shards in a new order, split into windows."""

    windows: list[list[SampleLocation]]
    """The first sample of each shard."""
    ends: np.ndarray
    """Cumulative samples, including each window."""


class Schedule:
    """The endless sequence of global batches; each batch has samples of one bucket."""

    def __init__(
        self,
        manifests: Sequence[Manifest],
        shares: tuple[BucketShare, ...],
        *,
        seed: int,
        shuffle_window_shards: int,
        split: Split,
        in_order: bool = False,
    ) -> None:
        """
        Args:
            manifests: of the sources.
            shares: of buckets that have samples in the split.
            shuffle_window_shards: shards per window; samples are shuffled within a window.
            in_order: nothing is shuffled: the samples of a source's part of a bucket come as its
                shards hold them.
        """
        self.shares = {share.bucket: share for share in shares}
        self.seed = seed
        self.split = split
        self.shuffle_window_shards = shuffle_window_shards
        self.in_order = in_order
        self.sources = len(manifests)
        self._shards: dict[str, list[SampleLocation]] = {}
        """The first sample of each shard of a part."""
        for source, manifest in enumerate(manifests):
            for shard in manifest.shards:
                if shard.split == split and shard.num_samples and shard.bucket in self.shares:
                    part = part_name(shard.bucket, source)
                    self._shards.setdefault(part, []).append(SampleLocation(shard, 0, source))
        self._sizes = {
            part: sum(first.shard.num_samples for first in shards)
            for part, shards in self._shards.items()
        }
        # At the border between two, both are in use.
        self._epoch = lru_cache(maxsize=2 * len(self._shards))(self._shuffled_epoch)
        self._window = lru_cache(maxsize=4 * len(self._shards))(self._shuffled_window)

    def step_at(self, position: Position) -> PlannedStep:
        """The step at `position`, the same on every worker."""
        taken = Counter(dict(position.consumed))
        bucket = self._bucket(position.step, taken)
        share = self.shares[bucket]
        sources = deal(
            share.sources,
            [taken[part_name(bucket, source)] for source in range(self.sources)],
            self._behind(taken),
            share.batch.global_batch,
        )
        samples = []
        for part in (part_name(bucket, source) for source in sources):
            samples.append(Numbered(part, taken[part]))
            taken[part] += 1
        after = Position(position.step + 1, tuple(sorted(taken.items())))
        return PlannedStep(bucket, tuple(samples), share.batch, after)

    def _bucket(self, step: int, taken: Mapping[str, int]) -> str:
        """The bucket of a step. One source's are drawn; those of a mixture are dealt out as well,
        since draws would leave the shares of its sources to luck."""
        chances = np.array([share.probability for share in self.shares.values()])
        chances /= chances.sum()
        if self.sources == 1:
            return list(self.shares)[
                seeded(self.seed, "bucket", step).choice(len(chances), p=chances)
            ]
        steps = [
            self._taken(share.bucket, taken) / share.batch.global_batch
            for share in self.shares.values()
        ]
        return list(self.shares)[int(np.argmax(chances * (step + 1) - steps))]

    def _taken(self, bucket: str, taken: Mapping[str, int]) -> int:
        return sum(taken[part_name(bucket, source)] for source in range(self.sources))

    def _behind(self, taken: Mapping[str, int]) -> list[float]:
        """By how many samples each source is behind its shares of all buckets."""
        return [
            sum(
                share.sources[source] * self._taken(bucket, taken)
                - taken[part_name(bucket, source)]
                for bucket, share in self.shares.items()
            )
            for source in range(self.sources)
        ]

    def windows(self, step: PlannedStep) -> Iterator[tuple[str, list[SampleLocation]]]:
        """The windows that a step reads from, each as the first samples of its shards, by part; a
        new epoch may repeat one."""
        numbers: dict[str, list[int]] = {}
        for part, number in step.samples:
            numbers.setdefault(part, []).append(number)
        for part, all_numbers in numbers.items():
            number = all_numbers[0]
            while number <= all_numbers[-1]:
                epoch, window, offset = self._find(part, number)
                found = self._epoch(part, epoch).windows[window]
                yield part, found
                number += sum(first.shard.num_samples for first in found) - offset

    def replacements(self, part: str, number: int) -> Iterator[SampleLocation]:
        """All other samples of the part, in the order in which they replace an unusable one: those
        of its own window first, since those shards are open already."""
        epoch, own, offset = self._find(part, number)
        mine = self._window(part, epoch, own)[offset]
        count = len(self._epoch(part, epoch).windows)
        for turn in range(count):
            locations = self._window(part, epoch, (own + turn) % count)
            rng = seeded(self.seed, "replacement", part, number, turn)
            yield from (
                locations[i] for i in rng.permutation(len(locations)) if locations[i] != mine
            )

    def epoch(self, part: str, number: int) -> int:
        """How often all samples of the part came before this one of its sequence."""
        return number // self._sizes[part]

    def location(self, part: str, number: int) -> SampleLocation:
        """A sample of the part's sequence."""
        epoch, window, offset = self._find(part, number)
        return self._window(part, epoch, window)[offset]

    def _find(self, part: str, number: int) -> tuple[int, int, int]:
        """Epoch and window of a sample of the sequence, and its index in the window."""
        epoch, offset = divmod(number, self._sizes[part])
        ends = self._epoch(part, epoch).ends
        window = int(np.searchsorted(ends, offset, side="right"))
        return epoch, window, offset - int(ends[window - 1]) if window else offset

    def _shuffled_epoch(self, part: str, epoch: int) -> _Epoch:
        shards, size = self._shards[part], self.shuffle_window_shards
        order = self._order(len(shards), "epoch", part, epoch)
        shuffled = [shards[i] for i in order]
        windows = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        samples = [sum(first.shard.num_samples for first in window) for window in windows]
        return _Epoch(windows, np.cumsum(samples))

    def _shuffled_window(self, part: str, epoch: int, window: int) -> list[SampleLocation]:
        locations = [
            SampleLocation(first.shard, index, first.source)
            for first in self._epoch(part, epoch).windows[window]
            for index in range(first.shard.num_samples)
        ]
        order = self._order(len(locations), "window", part, epoch, window)
        return [locations[i] for i in order]

    def _order(self, count: int, *what: object) -> np.ndarray:
        return np.arange(count) if self.in_order else seeded(self.seed, *what).permutation(count)

"""Turns shards of latents into batches for one worker, prefetched by threads.

`schedule.py` decides the order of samples, `shard_store.py` finds their bytes. Memory of a worker:
the prefetched batches and the shard store's index.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datagen.dataset.records import CodecRecord, ShardRecord
from datagen.dataset.shards import DamagedShard, ShardSample
from datagen.errors import FlowmapsrError
from datagen.io.prefetch import WorkerThreads, read_ahead
from datagen.samples.buckets import Bucket
from training.data.sample_decoder import BatchBuffer, BatchFields, DamagedSample, holds
from training.data.schedule import MicroStep, PlannedBatch, Position, SampleLocation, Schedule
from training.data.shard_store import ShardStore
from training.data.skipped import SkippedSample

AHEAD = 8
"""Batches prefetched."""
SHARDS_AHEAD = 32
"""Steps ahead at which a shard is checked and, on S3, downloaded."""
TRIES = 100
"""Consecutive unusable samples and shards after which the dataset itself must be at fault."""


@dataclass(frozen=True)
class Batch:
    """A micro batch of one bucket, on one device."""

    keys: tuple[str, ...]
    hq: Tensor
    """(B, C, h, w), like lq and neg: float32, but float16 (as stored) before `to`."""
    lq: Tensor
    neg: Tensor | None
    """The negatives; None if not requested or not stored."""
    pixels: Tensor | None
    """HQ pixels (B, 3, H, W) uint8; None if not requested or not stored."""
    position: Position
    """The loader's position after the step of this batch."""
    micro: MicroStep = MicroStep()
    skipped: tuple[SkippedSample, ...] = ()
    """Samples that were unusable and are replaced in this batch."""
    meta: tuple[bytes, ...] = ()
    """Each sample's `meta.json`."""

    def require_pixels(self) -> Tensor:
        if self.pixels is None:
            raise FlowmapsrError(
                "perceptual needs HQ pixels, but the dataset has none: build it with "
                "hq_jpeg_quality=95, or set perceptual.kind=none"
            )
        return self.pixels

    def require_neg(self) -> Tensor:
        if self.neg is None:
            raise FlowmapsrError(
                "objective.guidance needs negatives, but the dataset has none (no tensor 'neg' in "
                "latents.safetensors): build it again with 'flowmapsr dataset build', or remove "
                "guidance"
            )
        return self.neg

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, its latents in float32."""
        hq, lq = (x.to(device, non_blocking=True).float() for x in (self.hq, self.lq))
        neg = None if self.neg is None else self.neg.to(device, non_blocking=True).float()
        pixels = None if self.pixels is None else self.pixels.to(device, non_blocking=True)
        return replace(self, hq=hq, lq=lq, neg=neg, pixels=pixels)


@dataclass(frozen=True)
class BatchReader:
    """Reads planned micro batches; thread-safe."""

    store: ShardStore
    schedule: Schedule
    codec: CodecRecord
    fields: BatchFields | None
    """None for everything the samples have."""
    pin: bool = False
    """See `BatchBuffer`."""

    def read(self, planned: PlannedBatch) -> Batch:
        """Reads a micro batch; an unusable sample is replaced by another of its bucket, chosen by
        seed and dataset alone.

        Raises:
            FlowmapsrError: no usable sample is found, or the dataset cannot be reached.
        """
        skipped: dict[tuple[str, int | None], SkippedSample] = {}
        samples, size = len(planned.numbers), Bucket.from_name(planned.bucket)
        fields, down = self.fields or self._stored(planned), self.codec.downsample
        latents = (self.codec.channels, size.height // down, size.width // down)
        buffer = BatchBuffer(samples, latents, (size.height, size.width), fields, pin=self.pin)
        read = [self._fill(row, planned, buffer, skipped) for row in range(samples)]
        return Batch(
            keys=tuple(sample.key for sample in read),
            hq=buffer.latents["hq"],
            lq=buffer.latents["lq"],
            neg=buffer.latents.get("neg"),
            pixels=buffer.pixels,
            position=planned.position,
            micro=planned.micro,
            skipped=tuple(skipped.values()),
            meta=tuple(sample.meta for sample in read),
        )

    def _fill(
        self,
        row: int,
        planned: PlannedBatch,
        buffer: BatchBuffer,
        skipped: dict[tuple[str, int | None], SkippedSample],
    ) -> ShardSample:
        """Fills a row of the batch with its sample or a replacement, which is returned."""
        number = planned.numbers[row]
        own = self.schedule.location(planned.bucket, number)
        others = self.schedule.replacements(planned.bucket, number)
        tried: set[tuple[str, int | None]] = set()
        for location in itertools.chain([own], others):
            found = self._put(row, location, buffer)
            if isinstance(found, ShardSample):
                return found
            skipped[found.place] = found
            tried.add(found.place)
            if len(tried) > TRIES:
                break
        raise FlowmapsrError(
            f"bucket {planned.bucket}: {len(tried)} samples or shards in a row cannot be used. "
            f"Last one: {found}. Check the dataset with 'flowmapsr dataset verify'"
        )

    def _put(
        self, row: int, location: SampleLocation, buffer: BatchBuffer
    ) -> ShardSample | SkippedSample:
        shard = location.shard
        index, samples = None, shard.num_samples
        key = None
        try:
            self.store.prepare(shard)
            index, samples = location.index, 1
            sample = self.store.read(location)
            key = sample.key
            buffer.put(row, sample)
            return sample
        except (DamagedShard, DamagedSample) as error:
            name, reason = shard.path, str(error)
            return SkippedSample(shard=name, index=index, key=key, samples=samples, reason=reason)

    def _stored(self, planned: PlannedBatch) -> BatchFields:
        """The fields of the first readable sample."""
        for number in planned.numbers:
            location = self.schedule.location(planned.bucket, number)
            with contextlib.suppress(DamagedShard, DamagedSample):
                return holds(self.store.read(location))
        return BatchFields(neg=False, pixels=False)


@dataclass(frozen=True)
class LatentLoader:
    """Micro batches of one worker, in order, prefetched by threads.

    The workers share each step's global batch. Batches depend on dataset and seed only, not on the
    number of threads, even where samples are replaced.
    """

    reader: BatchReader
    rank: int
    world_size: int
    threads: int

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        """Endless micro batches from `position` on; in each step every worker gets equally many."""
        shards = WorkerThreads(self.reader.store.fetch, threads=2, name="shards-ahead")
        plans = self._plans(position, shards)
        batches = read_ahead(plans, self.reader.read, threads=self.threads, ahead=AHEAD)
        try:
            yield from batches
        finally:
            batches.close()
            shards.stop()

    def _plans(
        self, position: Position, shards: WorkerThreads[ShardRecord, None]
    ) -> Iterator[PlannedBatch]:
        """What this worker reads; shards are checked, and on S3 downloaded, some steps ahead."""
        schedule, scout = self.reader.schedule, position
        windows: dict[str, list[ShardRecord]] = {}
        while True:
            while scout.step < position.step + SHARDS_AHEAD:
                ahead = schedule.step_at(scout)
                for window in schedule.windows(ahead):
                    if windows.get(ahead.bucket) != window:
                        windows[ahead.bucket] = window
                        # Workers of a node start with different shards.
                        turn = self.rank % len(window)
                        for shard in window[turn:] + window[:turn]:
                            shards.submit(shard)
                scout = ahead.position
            step = schedule.step_at(position)
            yield from step.micro_batches_of(self.rank, self.world_size)
            position = step.position

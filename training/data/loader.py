"""Turns shards into batches for one worker, prefetched by threads.

`schedule.py` decides the order of samples, `shard_store.py` finds their bytes. Memory of a worker:
the prefetched batches and the shard store's index.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from datagen.dataset.records import CodecRecord
from datagen.dataset.shards import DamagedShard, ShardSample
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.prefetch import WorkerThreads, read_ahead
from datagen.samples.buckets import Bucket
from datagen.settings import LqPixels
from training.data.batch_memory import BatchMemory
from training.data.fresh_degradation import FreshDegradation
from training.data.planned import MicroStep, PlannedBatch, Position, SampleLocation
from training.data.sample_decoder import BatchBuffer, DamagedSample
from training.data.schedule import Schedule
from training.data.shard_store import ShardStore
from training.data.skipped import SkippedSample
from training.settings.batch_fields import BatchFields

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
    latents: Mapping[str, Tensor]
    """`hq`, `lq`, `neg` (B, C, h, w), as the stage asked: float32, but float16 (as stored) before
    `to`."""
    position: Position
    """The loader's position after the step of this batch."""
    micro: MicroStep = MicroStep()
    hq_pixels: Tensor | None = None
    """(B, 3, H, W) uint8; None if not asked for."""
    lq_pixels: Tensor | None = None
    """At HQ size, float32 (B, 3, H, W) in [0, 1]; None if not asked for."""
    degrade_seconds: float = 0.0
    """That a thread of the loader spent on fresh degradations."""
    skipped: tuple[SkippedSample, ...] = ()
    """Samples that were unusable and are replaced in this batch."""
    meta: tuple[bytes, ...] = ()
    """Each sample's `meta.json`."""

    @property
    def hq(self) -> Tensor:
        return self.latents["hq"]

    @property
    def lq(self) -> Tensor:
        return self.latents["lq"]

    @property
    def size(self) -> tuple[str, tuple[int, int]]:
        """What its samples are made of, `latents` or else `pixels`, and their height and width."""
        tensors = [*self.latents.values(), self.hq_pixels, self.lq_pixels]
        height, width = next(one for one in tensors if one is not None).shape[2:]
        return "latents" if self.latents else "pixels", (int(height), int(width))

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, its latents in float32."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            latents={
                name: tensor.to(device, non_blocking=True).float()
                for name, tensor in self.latents.items()
            },
            hq_pixels=moved(self.hq_pixels),
            lq_pixels=moved(self.lq_pixels),
        )


@dataclass(frozen=True)
class Source:
    """A dataset that samples are read from."""

    store: ShardStore
    stored_lq: LqPixels = "none"
    """How it stores LQ pixels."""
    fresh: FreshDegradation | None = None
    """What makes LQ pixels, if they are to be fresh."""


@dataclass(frozen=True)
class BatchReader:
    """Reads planned micro batches; thread-safe."""

    sources: Sequence[Source]
    """In the order of the schedule's manifests."""
    schedule: Schedule
    codec: CodecRecord | None
    """That of all sources; None where no latents are read."""
    fields: BatchFields
    memory: BatchMemory = field(default_factory=BatchMemory)

    def read(self, planned: PlannedBatch) -> Batch:
        """Reads a micro batch; an unusable sample is replaced by another of its source and bucket,
        chosen by seed and dataset alone.

        Raises:
            FlowmapsrError: no usable sample is found, or the dataset cannot be reached.
        """
        skipped: dict[tuple[str, int | None], SkippedSample] = {}
        samples, size = len(planned.samples), Bucket.from_name(planned.bucket)
        latents = (0, 0, 0)
        if self.codec is not None:
            down = self.codec.downsample
            latents = (self.codec.channels, size.height // down, size.width // down)
        buffer = BatchBuffer(
            samples,
            latents,
            (size.height, size.width),
            self.fields,
            self.memory,
        )
        read = [self._fill(row, planned, buffer, skipped) for row in range(samples)]
        return Batch(
            keys=tuple(sample.key for sample in read),
            latents=buffer.latents,
            position=planned.position,
            micro=planned.micro,
            hq_pixels=buffer.hq_pixels,
            lq_pixels=buffer.lq_pixels,
            degrade_seconds=buffer.degrade_seconds,
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
        wanted = planned.samples[row]
        own, others = self.schedule.location(*wanted), self.schedule.replacements(*wanted)
        tried: set[tuple[str, int | None]] = set()
        for location in itertools.chain([own], others):
            found = self._put(row, location, buffer, self.schedule.epoch(*wanted))
            if isinstance(found, ShardSample):
                return found
            skipped[found.place] = found
            tried.add(found.place)
            if len(tried) > TRIES:
                break
        raise FlowmapsrError(
            f"bucket {wanted.part}: {len(tried)} samples or shards in a row cannot be used. "
            f"Last one: {found}. Check the dataset with 'flowmapsr dataset verify'"
        )

    def _put(
        self, row: int, location: SampleLocation, buffer: BatchBuffer, epoch: int
    ) -> ShardSample | SkippedSample:
        shard, source = location.shard, self.sources[location.source]
        index, samples = None, shard.num_samples
        key = None
        try:
            source.store.prepare(shard)
            index, samples = location.index, 1
            sample = source.store.read(location)
            key = sample.key
            buffer.put(row, sample, epoch=epoch, stored_lq=source.stored_lq, fresh=source.fresh)
            return sample
        except (DamagedShard, DamagedSample) as error:
            mixed, reason = len(self.sources) > 1, str(error)
            name = storage.join(source.store.dataset, shard.path) if mixed else shard.path
            return SkippedSample(shard=name, index=index, key=key, samples=samples, reason=reason)


@dataclass(frozen=True)
class BatchLoader:
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
        shards = WorkerThreads(self._fetch, threads=2, name="shards-ahead")
        plans = self._plans(position, shards)
        batches = read_ahead(plans, self.reader.read, threads=self.threads, ahead=AHEAD)
        try:
            yield from batches
        finally:
            batches.close()
            shards.stop()

    def _fetch(self, first: SampleLocation) -> None:
        self.reader.sources[first.source].store.fetch(first.shard)

    def _plans(
        self, position: Position, shards: WorkerThreads[SampleLocation, None]
    ) -> Iterator[PlannedBatch]:
        """What this worker reads; shards are checked, and on S3 downloaded, some steps ahead."""
        schedule, scout = self.reader.schedule, position
        windows: dict[str, list[SampleLocation]] = {}
        while True:
            while scout.step < position.step + SHARDS_AHEAD:
                ahead = schedule.step_at(scout)
                for part, window in schedule.windows(ahead):
                    if windows.get(part) != window:
                        windows[part] = window
                        # Workers of a node start with different shards.
                        turn = self.rank % len(window)
                        for shard in window[turn:] + window[:turn]:
                            shards.submit(shard)
                scout = ahead.position
            step = schedule.step_at(position)
            yield from step.micro_batches_of(self.rank, self.world_size)
            position = step.position

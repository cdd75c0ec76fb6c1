"""Shards of latents to batches for one worker, read ahead in threads. Knows no objective and no
engine.

Which samples come when is the schedule's business, and where their bytes are the shard store's.
Memory of a worker: the batches read ahead, and what the shard store says.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import CodecRecord, ShardRecord, Split
from datagen.dataset.shards import DamagedShard
from datagen.errors import FlowmapsrError
from datagen.io.prefetch import Crew, read_ahead
from datagen.samples.buckets import Bucket
from training.data.bucket_mix import BucketDraw, bucket_sizes, proportional_draws
from training.data.sample_decoder import BatchMemory, DamagedSample, SampleShape, Wanted, holds
from training.data.schedule import MicroStep, Place, PlannedBatch, Position, Schedule
from training.data.shard_store import ShardStore
from training.data.skipped import Skipped
from training.settings.stage import BatchSize

AHEAD = 8
"""Batches that wait or are in the making while one is trained on."""
SHARDS_AHEAD = 32
"""Steps before a shard is needed at which it is checked and, on S3, fetched."""
TRIES = 100
"""Samples and shards in a row that may be unusable before something else must be wrong."""


@dataclass(frozen=True)
class Batch:
    """A micro batch of one bucket, on one device."""

    keys: tuple[str, ...]
    hq: Tensor
    """(B, C, h, w) as lq and neg: float32, but float16 before `to`, as the dataset stores them."""
    lq: Tensor
    neg: Tensor | None
    """The negatives; None when they are not wanted or the dataset stores none."""
    pixels: Tensor | None
    """HQ pixels (B, 3, H, W) uint8; None when they are not wanted or the dataset stores none."""
    position: Position
    """Where the loader stands after the step that this batch belongs to."""
    micro: MicroStep = MicroStep()
    skipped: tuple[Skipped, ...] = ()
    """What could not be used; other samples stand in for it here."""

    def require_pixels(self) -> Tensor:
        if self.pixels is None:
            raise FlowmapsrError(
                "perceptual needs HQ pixels, but the dataset holds none: build it with "
                "hq_jpeg_quality=95, or set perceptual.kind=none"
            )
        return self.pixels

    def require_neg(self) -> Tensor:
        if self.neg is None:
            raise FlowmapsrError(
                "objective.guidance needs negatives, but the dataset holds none (no tensor 'neg' "
                "in latents.safetensors): build it again with 'flowmapsr dataset build', or leave "
                "guidance out"
            )
        return self.neg

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, its latents in float32."""
        hq, lq = (x.to(device, non_blocking=True).float() for x in (self.hq, self.lq))
        neg = None if self.neg is None else self.neg.to(device, non_blocking=True).float()
        pixels = None if self.pixels is None else self.pixels.to(device, non_blocking=True)
        return replace(self, hq=hq, lq=lq, neg=neg, pixels=pixels)


class BatchReader:
    """Planned micro batches to micro batches; may be called from several threads."""

    def __init__(
        self,
        store: ShardStore,
        schedule: Schedule,
        codec: CodecRecord,
        *,
        wanted: Wanted | None,
        pin: bool = False,
    ) -> None:
        """
        Args:
            wanted: None for all that the samples hold.
            pin: put the tensors into page-locked memory, from where a GPU copies them while others
                work.
        """
        self.store = store
        self.schedule = schedule
        self.codec = codec
        self.wanted = wanted
        self.pin = pin

    def read(self, planned: PlannedBatch) -> Batch:
        """A sample that cannot be used is replaced by another one of its bucket; which one depends
        on seed and dataset only.

        Raises FlowmapsrError when none can be found, or the dataset cannot be reached.
        """
        skipped: dict[tuple[str, int | None], Skipped] = {}
        shape = self._shape(planned.bucket)
        wanted = self.wanted or self._stored(planned)
        memory = BatchMemory(len(planned.places), shape, wanted, pin=self.pin)
        keys = [self._fill(row, planned, memory, skipped) for row in range(len(planned.places))]
        return Batch(
            keys=tuple(keys),
            hq=memory.hq,
            lq=memory.lq,
            neg=memory.neg,
            pixels=memory.pixels,
            position=planned.position,
            micro=planned.micro,
            skipped=tuple(skipped.values()),
        )

    def _fill(
        self,
        row: int,
        planned: PlannedBatch,
        memory: BatchMemory,
        skipped: dict[tuple[str, int | None], Skipped],
    ) -> str:
        """Puts the sample at a place of the batch, or what stands in for it, into the memory; its
        key."""
        others = self.schedule.replacements(planned.bucket, planned.first + row)
        tried: set[tuple[str, int | None]] = set()
        for place in itertools.chain([planned.places[row]], others):
            found = self._put(row, place, memory)
            if isinstance(found, str):
                return found
            skipped[found.place] = found
            tried.add(found.place)
            if len(tried) > TRIES:
                break
        raise FlowmapsrError(
            f"bucket {planned.bucket}: {len(tried)} samples or shards in a row cannot be used. "
            f"Last one: {found}. Look at the dataset with 'flowmapsr dataset verify'"
        )

    def _put(self, row: int, place: Place, memory: BatchMemory) -> str | Skipped:
        shard = place.shard
        try:
            self.store.prepare(shard)
        except DamagedShard as error:
            return Skipped(
                shard=shard.path,
                index=None,
                key=None,
                samples=shard.num_samples,
                reason=str(error),
            )
        key = None
        try:
            sample = self.store.read(place)
            key = sample.key
            memory.put(row, sample)
            return key
        except (DamagedShard, DamagedSample) as error:
            return Skipped(
                shard=shard.path, index=place.index, key=key, samples=1, reason=str(error)
            )

    def _stored(self, planned: PlannedBatch) -> Wanted:
        """What the first of the samples that can be read holds."""
        for place in planned.places:
            with contextlib.suppress(DamagedShard, DamagedSample):
                return holds(self.store.read(place))
        return Wanted(neg=False, pixels=False)

    def _shape(self, bucket: str) -> SampleShape:
        size, down = Bucket.from_name(bucket), self.codec.downsample
        latents = (self.codec.channels, size.height // down, size.width // down)
        return SampleShape(latents, (size.height, size.width))


class LatentLoader:
    """Micro batches of one worker, in order, read ahead by threads.

    At every step the workers share the global batch. The batches depend on dataset and seed only,
    not on the number of threads; not even where samples cannot be used.
    """

    def __init__(
        self,
        store: ShardStore,
        manifest: Manifest,
        draws: tuple[BucketDraw, ...],
        *,
        wanted: Wanted,
        rank: int,
        world_size: int,
        seed: int,
        shuffle_shards: int,
        threads: int,
        pin: bool = False,
    ) -> None:
        self.schedule = Schedule(
            manifest, draws, seed=seed, shuffle_shards=shuffle_shards, split="train"
        )
        self._reader = BatchReader(store, self.schedule, manifest.codec, wanted=wanted, pin=pin)
        self._store = store
        self.rank = rank
        self.world_size = world_size
        self.threads = threads

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        """Endless micro batches from `position` on, as many in each step on every worker."""
        shards = Crew(self._store.fetch, threads=2, name="shards-ahead")
        plans = self._plans(position, shards)
        batches = read_ahead(plans, self._reader.read, threads=self.threads, ahead=AHEAD)
        try:
            yield from batches
        finally:
            batches.close()
            shards.stop()

    def _plans(self, position: Position, shards: Crew[ShardRecord, None]) -> Iterator[PlannedBatch]:
        """What this worker reads; shards are checked, and on S3 fetched, some steps before."""
        scout = position
        windows: dict[str, list[ShardRecord]] = {}
        while True:
            while scout.step < position.step + SHARDS_AHEAD:
                draw = self.schedule.draw_at(scout)
                for window in self.schedule.windows(draw):
                    if windows.get(draw.bucket) != window:
                        windows[draw.bucket] = window
                        turn = self.rank % len(window)  # a node's workers begin with different ones
                        for shard in window[turn:] + window[:turn]:
                            shards.submit(shard)
                scout = draw.position
            step = self.schedule.step_at(position)
            yield from step.share(self.rank, self.world_size)
            position = step.position


def fixed_batch(store: ShardStore, manifest: Manifest, size: int) -> Batch:
    """The same few samples at every call with all they hold, for pictures: validation samples where
    there are any."""
    splits = {shard.split for shard in manifest.shards if shard.num_samples}
    split: Split = "validation" if "validation" in splits else "train"
    draws = proportional_draws(bucket_sizes(manifest, split), BatchSize(size, size))
    schedule = Schedule(manifest, draws, seed=0, shuffle_shards=1, split=split)
    (planned,) = schedule.step_at(Position()).share(rank=0, world_size=1)
    return BatchReader(store, schedule, manifest.codec, wanted=None).read(planned)

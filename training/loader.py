"""Shards of latents to batches for one worker, read ahead in a thread. Knows no objective and no
engine.

Which samples come when is the schedule's business; this file reads, decodes and stacks them.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from datagen import storage
from datagen.errors import FlowmapsrError
from datagen.manifest import Manifest, ShardRecord
from datagen.shards import ShardSample, read_shard
from training.schedule import Place, Position, Schedule


@dataclass(frozen=True)
class Batch:
    """A micro batch of one bucket, on one device."""

    keys: tuple[str, ...]
    hq: Tensor
    """(B, C, h, w) float32, as lq and neg."""
    lq: Tensor
    neg: Tensor | None
    """The negatives; None when the dataset stores none."""
    pixels: Tensor | None
    """HQ pixels (B, 3, H, W) uint8; None when the dataset stores none."""
    position: Position
    """Where the loader stands after the step that this batch belongs to."""

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
        """The same batch on `device`; a no-op where it already is."""
        hq, lq = (x.to(device, non_blocking=True) for x in (self.hq, self.lq))
        neg, pixels = (
            None if x is None else x.to(device, non_blocking=True) for x in (self.neg, self.pixels)
        )
        return replace(self, hq=hq, lq=lq, neg=neg, pixels=pixels)


class ShardReader:
    """Samples by place, with the most recently used shards kept in memory."""

    def __init__(self, dataset: str, *, keep: int) -> None:
        self.dataset = dataset
        self.keep = keep
        self._shards: OrderedDict[str, list[ShardSample]] = OrderedDict()

    def batch(self, places: list[Place], position: Position) -> Batch:
        samples = [self._samples(place.shard)[place.index] for place in places]
        latents = [safetensors.torch.load(sample.latents) for sample in samples]
        hq, lq = (torch.stack([tensors[k] for tensors in latents]).float() for k in ("hq", "lq"))
        negatives = [tensors["neg"] for tensors in latents if "neg" in tensors]
        # As with the pixels, a dataset stores those of all samples or of none.
        neg = torch.stack(negatives).float() if negatives else None
        jpegs = [sample.hq_jpeg for sample in samples if sample.hq_jpeg is not None]
        # A recipe stores the pixels of all samples or of none.
        pixels = torch.stack([_decode(jpeg) for jpeg in jpegs]) if jpegs else None
        keys = tuple(sample.key for sample in samples)
        return Batch(keys, hq, lq, neg, pixels, position)

    def _samples(self, shard: ShardRecord) -> list[ShardSample]:
        if shard.path not in self._shards:
            uri = storage.join(self.dataset, shard.path)
            self._shards[shard.path] = read_shard(uri, sha256=shard.sha256)
            while len(self._shards) > self.keep:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard.path)
        return self._shards[shard.path]


def _decode(jpeg: bytes) -> Tensor:
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise FlowmapsrError("hq.jpg of a sample cannot be decoded")
    return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1)))


class LatentLoader:
    """Micro batches of one worker, in order, read ahead by a thread.

    At every step the workers share the global batch: micro batch j of it goes to worker j mod
        world_size.
    """

    def __init__(
        self,
        dataset: str,
        manifest: Manifest,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle_shards: int,
        read_ahead: int = 8,
    ) -> None:
        self.schedule = Schedule(
            manifest,
            global_batch=global_batch,
            seed=seed,
            shuffle_shards=shuffle_shards,
            split="train",
        )
        # Two windows may be open at the border between them, and for every bucket.
        buckets = len({shard.bucket for shard in manifest.shards})
        self._reader = ShardReader(dataset, keep=2 * shuffle_shards * buckets)
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size
        self.read_ahead = read_ahead

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        """Endless micro batches from `position` on; global_batch / (micro_batch * workers) for each
        step."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(self.read_ahead)
        stopped = threading.Event()

        def read() -> None:
            try:
                for batch in self._read(position):
                    if not _put(ready, batch, stopped):
                        return
            except BaseException as error:  # handed to the consumer, who raises it
                _put(ready, error, stopped)

        thread = threading.Thread(target=read, name="latent-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join(timeout=10)

    def _read(self, position: Position) -> Iterator[Batch]:
        while True:
            places, position = self.schedule.global_batch_at(position)
            share = self.micro_batch * self.world_size
            for start in range(self.rank * self.micro_batch, len(places), share):
                yield self._reader.batch(places[start : start + self.micro_batch], position)


def _put(
    ready: queue.Queue[Batch | BaseException],
    item: Batch | BaseException,
    stopped: threading.Event,
) -> bool:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False


def fixed_batch(dataset: str, manifest: Manifest, size: int) -> Batch:
    """The same few samples at every call, for pictures: validation samples where there are any."""
    splits = {shard.split for shard in manifest.shards if shard.num_samples}
    split = "validation" if "validation" in splits else "train"
    schedule = Schedule(manifest, global_batch=size, seed=0, shuffle_shards=1, split=split)
    places, position = schedule.global_batch_at(Position())
    return ShardReader(dataset, keep=1).batch(places, position)

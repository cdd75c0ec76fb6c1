"""Turns a task into shards: prepares, encodes and writes its samples, side by side.

`ShardBuilder(recipe)(task)` is a plain picklable callable that does not know who calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import cv2
import torch

from datagen.build.finish import RejectionLimit, finish, pending_tasks
from datagen.build.plan import plan_dataset
from datagen.build.survey import survey
from datagen.dataset.known_photos import KnownPhoto
from datagen.dataset.layout import record_path
from datagen.dataset.manifest import Manifest
from datagen.dataset.records import CodecRecord, ShardRecord, Split
from datagen.dataset.shards import ShardSample, ShardWriter, open_shard
from datagen.dataset.statistics import Tally
from datagen.dataset.tasks import ShardTask, TaskRecord
from datagen.io import storage
from datagen.io.lock import BUILD, place_lock
from datagen.records import to_json
from datagen.samples.codecs import Codec, load_codec
from datagen.samples.encode import Encoded, encode
from datagen.samples.prepare import prepare
from datagen.settings import AutoencoderSettings, DatasetRecipe


class ShardBuilder:
    """Makes the shards of a task; the codec is loaded at the first one and then kept.

    Args:
        device: where the codec runs.
        threads: how many threads read, decode and degrade beside it.
    """

    def __init__(self, recipe: DatasetRecipe, *, device: str = "cpu", threads: int = 1) -> None:
        self._recipe = recipe
        self._device = device
        self._threads = threads
        self._codec: Codec | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_codec": None}

    def __call__(self, task: ShardTask) -> TaskRecord:
        """Writes the tars, then their records, then the task's: the commit.

        Photos that cannot be used are left out and named in the record. Raises FlowmapsrError when
        a photo is not the one that was planned, or the output cannot be written.
        """
        codec = self._loaded_codec()
        work = _Work(self._recipe, task, Tally(codec_record(self._recipe, codec), self._recipe))
        with _one_core(), ExitStack() as published:
            outcomes = prepare(task, self._recipe, threads=self._threads)
            for encoded in encode(
                outcomes, codec, batch=_batch_size(self._recipe), device=self._device
            ):
                work.add(encoded, published)
            shards = work.close_shards()
        for shard in shards:
            uri = storage.join(self._recipe.output, record_path(shard.path))
            storage.write_bytes(uri, to_json(shard))
        record = work.record(shards)
        storage.write_bytes(storage.join(self._recipe.output, task.path), to_json(record))
        return record

    def _loaded_codec(self) -> Codec:
        if self._codec is None:
            self._codec = load_codec(self._recipe.codec, self._device)
        return self._codec


class _Work:
    """Open shards and counts of one task."""

    def __init__(self, recipe: DatasetRecipe, task: ShardTask, tally: Tally) -> None:
        self._output = recipe.output
        self._task = task
        self._tally = tally
        self._writers: dict[tuple[str, Split], ShardWriter] = {}
        files = [photo.file for photo in task.photos]
        self._photos = {
            file.uri: KnownPhoto(file.uri, file.bytes, file.stamp, sha256=None, reason=None)
            for file in files
        }

    def add(self, encoded: Encoded, published: ExitStack) -> None:
        """Stores a sample, or notes why there is none; `published` publishes the shards."""
        outcome, uri = encoded.outcome, encoded.outcome.file.uri
        if outcome.sample is None or encoded.latents is None:
            self._photos[uri] = replace(self._photos[uri], reason=outcome.reason)
            return
        self._photos[uri] = replace(self._photos[uri], sha256=outcome.sha256)
        drawn = outcome.sample.drawn
        side = outcome.sample.photo_side
        self._tally.add(encoded.latents.hq, drawn, photo_side=side)
        self._writer(drawn.bucket, outcome.sample.split, published).add(
            ShardSample(
                key=drawn.key,
                latents=encoded.latents.to_bytes(),
                meta=to_json(drawn),
                hq_jpeg=outcome.sample.hq_jpeg,
            )
        )

    def _writer(self, bucket: str, split: Split, published: ExitStack) -> ShardWriter:
        if (bucket, split) not in self._writers:
            uri = storage.join(self._output, self._task.shard_path(bucket, split))
            self._writers[bucket, split] = published.enter_context(open_shard(uri))
        return self._writers[bucket, split]

    def close_shards(self) -> tuple[ShardRecord, ...]:
        records = [
            ShardRecord(
                path=self._task.shard_path(bucket, split),
                bucket=bucket,
                split=split,
                **vars(writer.close()),
            )
            for (bucket, split), writer in sorted(self._writers.items())
        ]
        return tuple(records)

    def record(self, shards: tuple[ShardRecord, ...]) -> TaskRecord:
        return TaskRecord(
            index=self._task.index,
            shards=shards,
            photos=tuple(self._photos.values()),
            sums=self._tally.sums(),
        )


def codec_record(recipe: DatasetRecipe, codec: Codec) -> CodecRecord:
    return CodecRecord(
        kind=recipe.codec.kind,
        fingerprint=codec.fingerprint,
        channels=codec.channels,
        downsample=codec.downsample,
    )


def build_dataset(recipe: DatasetRecipe) -> Manifest:
    """Builds or extends the whole dataset in this process, or finishes a build that was begun."""
    complete = survey(recipe).complete
    if complete is not None:
        return complete
    with place_lock(recipe.output, BUILD) as lock:
        plan = plan_dataset(recipe)
        builder = ShardBuilder(recipe)
        limit = RejectionLimit(plan)
        for task in pending_tasks(plan):
            lock.check()
            limit.check(builder(task))
        lock.renew()
        lock.check()
        return finish(plan)


def _batch_size(recipe: DatasetRecipe) -> int:
    return recipe.codec.batch if isinstance(recipe.codec, AutoencoderSettings) else 1


@contextmanager
def _one_core() -> Iterator[None]:
    """Shards are made side by side, one core each: threads inside them would only wait."""
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)

"""Turns a task into shards: prepares, encodes and writes its samples at the same time.

`ShardBuilder(recipe)(task)` is a plain picklable callable, independent of what calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import cv2
import torch

from datagen.dataset.known_photos import UNREADABLE, KnownPhoto
from datagen.dataset.layout import record_path, shard_path
from datagen.dataset.records import CodecRecord, ShardRecord, Split
from datagen.dataset.shards import ShardSample, ShardWriter, open_shard, write_latents
from datagen.dataset.statistics import StatisticsCollector
from datagen.dataset.tasks import ShardTask, TaskRecord
from datagen.io import storage
from datagen.photos.source_file import Rejection, kind_of
from datagen.records import to_json
from datagen.samples.codecs import Codec, codec_of, codec_record
from datagen.samples.encode import encode
from datagen.samples.prepare import SampleResult, prepare
from datagen.settings import DatasetRecipe


class ShardBuilder:
    """Makes the shards of a task; the codec is loaded on `device` for the first one and then kept,
    and `threads` threads read, decode and degrade beside it."""

    def __init__(self, recipe: DatasetRecipe, *, device: str = "cpu", threads: int = 1) -> None:
        self._recipe = recipe
        self._device = device
        self._threads = threads
        self._codec: Codec | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_codec": None}

    def __call__(self, task: ShardTask) -> TaskRecord:
        """Writes the tars, then their records, then the task's: the commit.

        Photos that cannot be used are left out and named in the record.

        Raises:
            FlowmapsrError: a photo is not the planned one, or the output cannot be written.
        """
        recipe = self._recipe
        if self._codec is None:
            self._codec = codec_of(recipe, self._device)
        with _one_core(), ExitStack() as published:
            shards = _OpenShards(recipe, task, codec_record(recipe, self._codec), published)
            results = prepare(task, recipe, threads=self._threads)
            if self._codec is not None:
                results = encode(results, self._codec, recipe, device=self._device)
            for result in results:
                shards.add(result)
            record = shards.close()
        for shard in record.shards:
            uri = storage.join(recipe.output, record_path(shard.path))
            storage.write_bytes(uri, to_json(shard))
        storage.write_bytes(storage.join(recipe.output, task.path), to_json(record))
        return record


class _OpenShards:
    """Open shards and counts of one task; closing `published` makes the shards appear."""

    def __init__(
        self,
        recipe: DatasetRecipe,
        task: ShardTask,
        codec: CodecRecord | None,
        published: ExitStack,
    ) -> None:
        self._output = recipe.output
        self._task = task
        self._published = published
        self._stats = StatisticsCollector(codec)
        self._writers: dict[tuple[str, Split], ShardWriter] = {}
        self._photos = {
            file.uri: KnownPhoto(file.uri, file.bytes, file.stamp, sha256=None, reason=None)
            for file in (photo.file for photo in task.photos)
        }

    def add(self, result: SampleResult) -> None:
        """Stores a sample, or records why there is none."""
        if isinstance(result, Rejection):
            before = self._photos[result.uri]
            stamp = "" if kind_of(result.reason) in UNREADABLE else before.stamp
            self._photos[result.uri] = replace(before, reason=result.reason, stamp=stamp)
            return
        drawn, latents = result.drawn, result.latents
        self._photos[drawn.source] = replace(self._photos[drawn.source], sha256=result.sha256)
        self._stats.add(latents.get("hq"), drawn, photo_side=result.photo_side)
        self._writer(drawn.bucket, result.split).add(
            ShardSample(
                drawn.key,
                latents=write_latents(latents) if latents else None,
                meta=to_json(drawn),
                hq_image=result.hq_image,
                lq_image=result.lq_image,
            )
        )

    def _writer(self, bucket: str, split: Split) -> ShardWriter:
        if (bucket, split) not in self._writers:
            uri = storage.join(self._output, shard_path(bucket, split, self._task.index))
            self._writers[bucket, split] = self._published.enter_context(open_shard(uri))
        return self._writers[bucket, split]

    def close(self) -> TaskRecord:
        shards = [
            ShardRecord(
                path=shard_path(bucket, split, self._task.index),
                bucket=bucket,
                split=split,
                **vars(writer.close()),
            )
            for (bucket, split), writer in sorted(self._writers.items())
        ]
        return TaskRecord(
            index=self._task.index,
            shards=tuple(shards),
            photos=tuple(self._photos.values()),
            stats=self._stats.result(),
        )


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

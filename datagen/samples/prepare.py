"""Turns the photos of a task into degraded samples, prefetched by threads, in the task's order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from datagen.dataset.records import DrawnSample, Split
from datagen.dataset.shards import Latents
from datagen.dataset.tasks import ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.prefetch import read_ahead
from datagen.photos.decode import ImageRejected, check_pixels, decode_photo
from datagen.photos.source_file import Rejection, SourceFile, read_photo
from datagen.samples.sample import Photo, SamplePixels, draw_sample, make_pixels, split_of
from datagen.settings import DatasetRecipe


@dataclass(frozen=True)
class PreparedSample:
    """One variant of a photo; only `encode` adds its latents."""

    sha256: str
    """Of the photo's bytes."""
    drawn: DrawnSample
    split: Split
    images: np.ndarray
    """HQ, LQ and negative, float32 (3, H, W, 3) in [-1, 1]."""
    hq_jpeg: bytes | None
    photo_side: int
    """Shorter side of the photo, pixels."""
    latents: Latents | None = None


SampleResult = PreparedSample | Rejection
"""A sample, or why none can be made of this variant of a photo."""


def prepare(task: ShardTask, recipe: DatasetRecipe, *, threads: int) -> Iterator[SampleResult]:
    """One result for each sample of the task, in its order.

    At most `threads + 1` results wait at any time, so memory does not grow with the task.

    Raises:
        FlowmapsrError: a photo changed after planning, or cannot be read.
    """
    jobs = _jobs(task, recipe)
    return read_ahead(jobs, lambda job: job(), threads=threads, ahead=threads + 1)


def _jobs(task: ShardTask, recipe: DatasetRecipe) -> Iterator[Callable[[], SampleResult]]:
    for photo in task.photos:
        cached = _CachedPhoto(photo.file, recipe)
        for variant in range(photo.first, photo.first + photo.variants):
            yield partial(_result, recipe, cached, variant)


def _result(recipe: DatasetRecipe, photo: _CachedPhoto, variant: int) -> SampleResult:
    try:
        return _sample(recipe, photo.get(), variant)
    except ImageRejected as error:
        return Rejection(photo.file.uri, error.reason)


class _CachedPhoto:
    """A photo that is decoded when its first variant asks for it, and freed after the last."""

    def __init__(self, file: SourceFile, recipe: DatasetRecipe) -> None:
        self.file = file
        self._recipe = recipe
        self._lock = threading.Lock()
        self._result: Photo | ImageRejected | None = None

    def get(self) -> Photo:
        """The decoded photo; every call raises ImageRejected if the file cannot be used."""
        with self._lock:
            if self._result is None:
                self._result = self._read()
        if isinstance(self._result, ImageRejected):
            raise ImageRejected(self._result.reason)
        return self._result

    def _read(self) -> Photo | ImageRejected:
        data = self._bytes()
        try:
            pixels = decode_photo(data, self._recipe.images)
            check_pixels(pixels, self._recipe.filters)
        except ImageRejected as error:
            return error
        return Photo(self.file.uri, hashlib.sha256(data).hexdigest(), pixels)

    def _bytes(self) -> bytes:
        again = "run the same command again: finished shards are kept, the rest is replanned"
        try:
            data = read_photo(self.file)
        except storage.NotFoundError as error:
            raise FlowmapsrError(
                f"{self.file.uri}: this photo disappeared after planning; {again}"
            ) from error
        if len(data) != self.file.bytes:
            raise FlowmapsrError(
                f"{self.file.uri}: this photo changed after planning "
                f"({self.file.bytes} bytes then, {len(data)} now); {again}"
            )
        return data


def _sample(recipe: DatasetRecipe, photo: Photo, variant: int) -> PreparedSample:
    drawn = draw_sample(recipe, photo, variant)
    made = make_pixels(photo.pixels, drawn)
    return PreparedSample(
        sha256=photo.sha256,
        drawn=drawn,
        split=split_of(photo.sha256, recipe.validation_fraction),
        images=_stacked(made),
        hq_jpeg=_hq_jpeg(made.hq, recipe.hq_jpeg_quality),
        photo_side=min(photo.width, photo.height),
    )


def _stacked(made: SamplePixels) -> np.ndarray:
    images = np.empty((3, *made.hq.shape), np.float32)
    np.multiply(made.hq, np.float32(2 / 255), out=images[0], dtype=np.float32)
    np.multiply(made.lq, np.float32(2), out=images[1])
    np.multiply(made.neg, np.float32(2), out=images[2])
    images -= 1
    return images


def _hq_jpeg(hq: np.ndarray, quality: int | None) -> bytes | None:
    if quality is None:
        return None
    bgr = cv2.cvtColor(hq, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()

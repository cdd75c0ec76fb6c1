"""Turns a task's photos into degraded samples, read ahead by threads, in the task's order.

At most `threads + 1` samples wait at any time, so memory does not grow with the task. Knows no
codec and no shards.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from datagen.dataset.records import DrawnSample, Split
from datagen.dataset.tasks import ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.decode import ImageRejected, check_pixels, decode_photo
from datagen.photos.sources import SourceFile, read_photo
from datagen.samples.sample import Photo, SamplePixels, draw_sample, make_pixels, split_of
from datagen.settings import DatasetRecipe


@dataclass(frozen=True)
class PreparedSample:
    """A sample that only lacks its latents."""

    drawn: DrawnSample
    split: Split
    images: np.ndarray
    """HQ, LQ and negative, float32 (3, H, W, 3) in [-1, 1]."""
    hq_jpeg: bytes | None
    photo_side: int
    """Shorter side of the photo, pixels."""


@dataclass(frozen=True)
class Outcome:
    """What became of one variant of a photo: a sample, or a reason why there is none."""

    file: SourceFile
    sha256: str
    sample: PreparedSample | None
    reason: str | None


def prepare(task: ShardTask, recipe: DatasetRecipe, *, threads: int) -> Iterator[Outcome]:
    """One outcome for each sample of the task, in its order.

    Raises FlowmapsrError when a photo is not the one that was planned or cannot be read.
    """
    waiting: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        try:
            for photo, variant in _jobs(task, recipe):
                waiting.append(pool.submit(_prepared, recipe, photo, variant))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _jobs(task: ShardTask, recipe: DatasetRecipe) -> Iterator[tuple[_DecodedOnce, int]]:
    for photo in task.photos:
        decoded = _DecodedOnce(photo.file, recipe)
        for variant in range(photo.first, photo.first + photo.variants):
            yield decoded, variant


class _DecodedOnce:
    """A photo that is read when its first variant asks for it, and dropped after the last."""

    def __init__(self, file: SourceFile, recipe: DatasetRecipe) -> None:
        self.file = file
        self.sha256 = ""
        self._recipe = recipe
        self._lock = threading.Lock()
        self._result: Photo | ImageRejected | None = None

    def get(self) -> Photo:
        """Raises ImageRejected, every time, for a file that cannot be used."""
        with self._lock:
            if self._result is None:
                self._result = self._read()
        if isinstance(self._result, ImageRejected):
            raise ImageRejected(self._result.reason)
        return self._result

    def _read(self) -> Photo | ImageRejected:
        data = self._bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            pixels = decode_photo(data, self._recipe.images)
            check_pixels(pixels, self._recipe.filters)
        except ImageRejected as error:
            return error
        return Photo(self.file.uri, self.sha256, pixels)

    def _bytes(self) -> bytes:
        again = "run the same command again: what is finished is kept, the rest is planned anew"
        try:
            data = read_photo(self.file)
        except storage.NotFoundError as error:
            raise FlowmapsrError(
                f"{self.file.uri}: this photo has gone since the build was planned; {again}"
            ) from error
        if len(data) != self.file.bytes:
            raise FlowmapsrError(
                f"{self.file.uri}: this photo has changed since the build was planned "
                f"({self.file.bytes} bytes then, {len(data)} now); {again}"
            )
        return data


def _prepared(recipe: DatasetRecipe, decoded: _DecodedOnce, variant: int) -> Outcome:
    try:
        sample = _sample(recipe, decoded.get(), variant)
    except ImageRejected as error:
        return Outcome(decoded.file, decoded.sha256, None, error.reason)
    return Outcome(decoded.file, decoded.sha256, sample, None)


def _sample(recipe: DatasetRecipe, photo: Photo, variant: int) -> PreparedSample:
    drawn = draw_sample(recipe, photo, variant)
    made = make_pixels(photo.pixels, drawn)
    return PreparedSample(
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

"""Turns the photos of a task into degraded samples, prefetched by threads, in the task's order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from datagen.dataset.records import DrawnSample, RealLq, Split
from datagen.dataset.shards import Latents
from datagen.dataset.tasks import PhotoVariants, ShardTask
from datagen.degradation.noise import rounded
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.prefetch import read_ahead
from datagen.pairs.check import reasons_of_lq
from datagen.photos.decode import ImageRejected, check_pixels, load_image, upright_photo
from datagen.photos.source_file import Rejection, SourceFile, read_photo
from datagen.samples.pixels import hq_image, png
from datagen.samples.sample import Photo, SamplePixels, draw_sample, make_pixels, split_of
from datagen.settings import DatasetRecipe, ImageSettings, LatentName, LqPixels


@dataclass(frozen=True)
class PreparedSample:
    """One variant of a photo; only `encode` adds its latents."""

    sha256: str
    """Of the photo's bytes."""
    drawn: DrawnSample
    split: Split
    images: np.ndarray
    """Those of HQ, LQ and negative that latents are made of, float32 (N, H, W, 3) in [-1, 1]."""
    hq_image: bytes | None
    lq_image: bytes | None
    photo_side: int
    """Shorter side of the photo, pixels."""
    latents: Latents = field(default_factory=dict)


SampleResult = PreparedSample | Rejection
"""A sample, or why none can be made of this variant of a photo."""


def prepare(task: ShardTask, recipe: DatasetRecipe, *, threads: int) -> Iterator[SampleResult]:
    """One result for each sample of the task, in its order.

    At most `threads + 1` results wait at any time, so memory does not grow with the task.

    Raises:
        FlowmapsrError: a photo changed after planning, or cannot be read.
    """
    return read_ahead(
        _jobs(task, recipe),
        lambda job: _sample(recipe, job[0].get(), job[1]),
        threads=threads,
        ahead=threads + 1,
    )


def _jobs(task: ShardTask, recipe: DatasetRecipe) -> Iterator[tuple[_CachedPhoto, int]]:
    for photo in task.photos:
        cached = _CachedPhoto(photo, recipe)
        for variant in range(photo.first, photo.first + photo.variants):
            yield cached, variant


class _CachedPhoto:
    """A photo that is decoded when its first variant asks for it, and freed after the last."""

    def __init__(self, planned: PhotoVariants, recipe: DatasetRecipe) -> None:
        self._planned = planned
        self._recipe = recipe
        self._lock = threading.Lock()
        self._result: Photo | Rejection | None = None

    def get(self) -> Photo | Rejection:
        """The decoded photo, or why its file cannot be used."""
        with self._lock:
            if self._result is None:
                self._result = _decoded(self._planned, self._recipe)
            return self._result


def _decoded(planned: PhotoVariants, recipe: DatasetRecipe) -> Photo | Rejection:
    uri, lq = planned.file.uri, planned.lq
    try:
        sha256, pixels = _read(planned.file, recipe.images)
        check_pixels(pixels, recipe.filters)
        if lq is None:
            return Photo(uri, sha256, pixels)
        with reasons_of_lq(lq.file):
            lq_sha256, lq_pixels = _read(lq.file, recipe.images)
    except (ImageRejected, storage.UnreadableError) as error:
        return Rejection(uri, error.reason)
    real = RealLq(source=lq.file.uri, sha256=lq_sha256, registration=lq.registration)
    return Photo(uri, sha256, pixels, real, lq_pixels)


def _read(file: SourceFile, images: ImageSettings) -> tuple[str, np.ndarray]:
    """SHA-256 of the file, and its pixels."""
    data = _planned_bytes(file)
    sha256 = hashlib.sha256(data).hexdigest()
    image = load_image(data, images)
    del data  # of an uncompressed file it is as large as the picture
    return sha256, upright_photo(image, images)


def _planned_bytes(file: SourceFile) -> bytes:
    again = "run the same command again: finished shards are kept, the rest is replanned"
    try:
        data = read_photo(file)
    except storage.NotFoundError as error:
        raise FlowmapsrError(
            f"{file.uri}: this photo disappeared after planning; {again}"
        ) from error
    if len(data) != file.bytes:
        raise FlowmapsrError(
            f"{file.uri}: this photo changed after planning "
            f"({file.bytes} bytes then, {len(data)} now); {again}"
        )
    return data


def _sample(recipe: DatasetRecipe, photo: Photo | Rejection, variant: int) -> SampleResult:
    if isinstance(photo, Rejection):
        return photo
    try:
        drawn = draw_sample(recipe, photo, variant)
    except ImageRejected as error:
        return Rejection(photo.uri, error.reason)
    made = make_pixels(
        photo.pixels,
        drawn,
        lq_pixels=photo.lq_pixels,
        pipeline=recipe.augmentation.pipeline,
        sharpen=recipe.sharpen,
        wanted=_wanted(recipe),
    )
    return PreparedSample(
        sha256=photo.sha256,
        drawn=drawn.model_copy(update={"replay": made.replay}),
        split=split_of(photo.sha256, recipe.validation_fraction),
        images=_stacked(made, recipe.latents),
        hq_image=hq_image(made.hq, recipe),
        lq_image=_lq_image(made, recipe.lq_pixels),
        photo_side=min(photo.width, photo.height),
    )


def _wanted(recipe: DatasetRecipe) -> frozenset[str]:
    pixels = {"none": set(), "small": {"small_lq"}, "full": {"lq"}}[recipe.lq_pixels]
    return frozenset({*recipe.latents, *pixels})


def _stacked(made: SamplePixels, names: Sequence[LatentName]) -> np.ndarray:
    images = np.empty((len(names), *made.hq.shape), np.float32)
    for image, name in zip(images, names, strict=True):
        range_255 = name == "hq"  # the others are in [0, 1]
        factor = np.float32(2 / 255 if range_255 else 2)
        np.multiply(getattr(made, name), factor, out=image, dtype=np.float32)
    images -= 1
    return images


def _lq_image(made: SamplePixels, kind: LqPixels) -> bytes | None:
    match kind:
        case "none":
            return None
        case "small":
            assert made.small_lq is not None, "asked for by _wanted"
            return png(made.small_lq)
        case "full":
            assert made.lq is not None, "asked for by _wanted"
            return png(rounded(made.lq * np.float32(255)))

"""Turns one photo and one variant number into the draws and the pixels of a sample.

Every draw comes from a generator seeded by (recipe seed, key), independent of the photo's name.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from datagen.dataset.records import Crop, DrawnSample, Orientation, RealLq, Split
from datagen.degradation.apply import degrade, degrade_small, enlarge
from datagen.degradation.draw import draw_degradation, draw_negative
from datagen.degradation.kernels import sharpened
from datagen.degradation.noise import rounded
from datagen.degradation.settings import Usm
from datagen.pairs.crop import lq_of_crop
from datagen.samples.buckets import Bucket, draw_bucket
from datagen.samples.pipeline import augmented
from datagen.settings import Augmentation, DatasetRecipe


@dataclass(frozen=True)
class Photo:
    """A decoded photo: its URI, the SHA-256 of its file, and its pixels, uint8 (H, W, 3); of a pair
    the HQ, and what is known of the LQ with its pixels."""

    uri: str
    sha256: str
    pixels: np.ndarray
    real_lq: RealLq | None = None
    lq_pixels: np.ndarray | None = None

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class SamplePixels:
    """What was made of a photo; None for what was not asked for."""

    hq: np.ndarray
    """uint8 (H, W, 3)."""
    small_lq: np.ndarray | None
    """The LQ at its own size, uint8 (h, w, 3); that of a pair has none on the HQ's grid."""
    lq: np.ndarray | None
    """At HQ size, float32 (H, W, 3) in [0, 1]; so is `neg`."""
    neg: np.ndarray | None
    replay: dict[str, Any] | None = None
    """What the pipeline drew, if there is one."""


def sample_key(sha256: str, variant: int) -> str:
    """20 hex digits of the photo's hash, a dash, the two-digit variant."""
    return f"{sha256[:20]}-{variant:02d}"


def split_of(sha256: str, validation_fraction: float) -> Split:
    """The split of all variants of a photo: by its own hash, so the same in every recipe."""
    digest = hashlib.sha256(f"split {sha256}".encode()).digest()
    chance = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if chance < validation_fraction else "train"


def draw_sample(recipe: DatasetRecipe, photo: Photo, variant: int) -> DrawnSample:
    """Draws all parameters of a sample.

    Raises:
        ImageRejected: "too small", when the photo covers no bucket.
    """
    key = sample_key(photo.sha256, variant)
    rng = _generator(recipe.seed, key)
    orientation = _draw_orientation(recipe.augmentation, rng)
    rotated = orientation.quarter_turns % 2 == 1
    width, height = (photo.height, photo.width) if rotated else (photo.width, photo.height)
    bucket = draw_bucket(recipe.buckets, rng, width=width, height=height)
    crop = _draw_crop(recipe, rng, photo, _transposed(bucket) if rotated else bucket)
    lq = None if photo.real_lq else draw_degradation(recipe.degradation, rng)
    scale = lq.scale if lq is not None else _real_scale(photo, bucket, crop)
    neg = draw_negative(recipe.degradation, rng, lq_scale=scale)
    return DrawnSample(
        key=key,
        source=photo.uri,
        seed=recipe.seed,
        bucket=bucket.name,
        crop=crop,
        orientation=orientation,
        scale=scale,
        lq=lq,
        neg=neg,
        real_lq=photo.real_lq,
    )


def make_pixels(
    pixels: np.ndarray,
    drawn: DrawnSample,
    *,
    lq_pixels: np.ndarray | None = None,
    pipeline: dict[str, Any] | None = None,
    sharpen: Usm | None = None,
    wanted: frozenset[str] = frozenset({"small_lq", "lq", "neg"}),
) -> SamplePixels:
    """Crops, rotates, augments by a `pipeline` of albumentations and may sharpen the pixels of a
    photo, uint8 (H, W, 3), and makes the `wanted` images of that: names of fields of
    SamplePixels. The LQ of a pair is cut out of its `lq_pixels`."""
    crop = drawn.crop
    cut = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    bucket = Bucket.from_name(drawn.bucket)
    if drawn.orientation.quarter_turns % 2:
        bucket = _transposed(bucket)
    if cut.shape[:2] != (bucket.height, bucket.width):
        cut = cv2.resize(cut, (bucket.width, bucket.height), interpolation=cv2.INTER_AREA)
    hq = _oriented(np.ascontiguousarray(cut), drawn.orientation)
    replay = None
    if pipeline is not None:
        hq, replay = augmented(pipeline, hq, seed=drawn.seed, key=drawn.key)
    if sharpen is not None:
        hq = rounded(sharpened(hq.astype(np.float32), **sharpen.model_dump(exclude={"kind"})))
    small_lq = lq = None
    if drawn.lq is not None and wanted & {"small_lq", "lq"}:
        small_lq = degrade_small(hq, drawn.lq)
        if "lq" in wanted:
            lq = enlarge(small_lq, drawn.lq, size=(hq.shape[1], hq.shape[0]))
    if drawn.real_lq is not None and lq_pixels is not None and "lq" in wanted:
        real = lq_of_crop(
            lq_pixels,
            drawn.real_lq.registration,
            hq_size=(pixels.shape[1], pixels.shape[0]),
            crop=crop,
            size=(bucket.width, bucket.height),
        )
        lq = _oriented(real, drawn.orientation)
    neg = degrade(hq, drawn.neg) if "neg" in wanted else None
    return SamplePixels(hq=hq, small_lq=small_lq, lq=lq, neg=neg, replay=replay)


def _generator(seed: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def _transposed(bucket: Bucket) -> Bucket:
    return Bucket(height=bucket.width, width=bucket.height)


def _real_scale(photo: Photo, bucket: Bucket, crop: Crop) -> float:
    """Of a pair's LQ, after the HQ was shrunk to its bucket; 1 where the LQ is shrunk with it."""
    assert photo.real_lq is not None
    shrunk = math.sqrt(crop.width * crop.height / (bucket.width * bucket.height))
    return max(1.0, photo.real_lq.registration.scale / shrunk)


def _draw_orientation(settings: Augmentation, rng: np.random.Generator) -> Orientation:
    flip = bool(rng.random() < settings.flip_probability)
    turn = rng.random() < settings.rotate90_probability
    turns = int(rng.integers(1, 4))
    return Orientation(quarter_turns=turns if turn else 0, flip=flip)


def _draw_crop(
    recipe: DatasetRecipe, rng: np.random.Generator, photo: Photo, bucket: Bucket
) -> Crop:
    largest = min(photo.width / bucket.width, photo.height / bucket.height)
    chance = rng.random()
    match recipe.crop:
        case "cover":
            zoom = largest
        case "native":
            zoom = 1.0
        case "random":
            zoom = math.exp(chance * math.log(largest))
    width = min(photo.width, round(bucket.width * zoom))
    height = min(photo.height, round(bucket.height * zoom))
    return Crop(
        left=int(rng.integers(photo.width - width + 1)),
        top=int(rng.integers(photo.height - height + 1)),
        width=width,
        height=height,
    )


def _oriented(pixels: np.ndarray, orientation: Orientation) -> np.ndarray:
    # Without this, importing albumentations asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from albumentations.augmentations.geometric import functional

    rotated = functional.rot90(pixels, orientation.quarter_turns)
    return np.ascontiguousarray(functional.d4(rotated, "h" if orientation.flip else "e"))

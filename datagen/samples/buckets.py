"""Turns a photo's size into the bucket (height x width) its samples are cut to.

Buckets share a pixel budget and differ in aspect ratio, so that a batch has one shape (SDXL: Podell
et al. 2023, appendix I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datagen.photos.decode import ImageRejected
from datagen.settings import BucketSettings

TOO_SMALL = "too small"
"""Reason of a photo that covers no bucket."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Size of a sample, pixels."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """`<H>x<W>`, the name of its shard folder."""
        return f"{self.height}x{self.width}"

    @classmethod
    def from_name(cls, name: str) -> Bucket:
        height, width = name.split("x")
        return cls(int(height), int(width))


@lru_cache(maxsize=64)
def budget_buckets(side: int, *, step: int, max_aspect_ratio: float) -> tuple[Bucket, ...]:
    """All buckets of about side**2 pixels with sides that are multiples of `step`, sorted."""
    found: set[Bucket] = set()
    for one in range(step, math.floor(side * math.sqrt(max_aspect_ratio)) + step, step):
        other = step * max(1, round(side**2 / one / step))
        if max(one, other) <= max_aspect_ratio * min(one, other):
            found |= {Bucket(one, other), Bucket(other, one)}
    if not found:  # a side that is no multiple of a coarse step
        square = step * max(1, round(side / step))
        found = {Bucket(square, square)}
    return tuple(sorted(found))


def nearest_bucket(buckets: tuple[Bucket, ...], *, width: int, height: int) -> Bucket:
    """The bucket whose aspect ratio is nearest by |log ratio|; the first of equals."""
    ratio = math.log(width / height)
    return min(buckets, key=lambda bucket: abs(math.log(bucket.width / bucket.height) - ratio))


def fitting_buckets(
    settings: BucketSettings, *, width: int, height: int
) -> list[tuple[float, Bucket]]:
    """Frequency and bucket of each budget that a photo covers without being enlarged."""
    fitting = []
    for budget in settings.budgets:
        buckets = budget_buckets(
            budget.side, step=settings.step, max_aspect_ratio=settings.max_aspect_ratio
        )
        bucket = nearest_bucket(buckets, width=width, height=height)
        if bucket.width <= width and bucket.height <= height:
            fitting.append((budget.probability, bucket))
    return fitting


def draw_bucket(
    settings: BucketSettings, rng: np.random.Generator, *, width: int, height: int
) -> Bucket:
    """The bucket of a random pixel budget among those the photo covers, drawn by frequency.

    One number is drawn for every photo, so that later draws do not depend on its size.

    Raises:
        ImageRejected: "too small", when the photo covers no budget.
    """
    chance = rng.random()
    fitting = fitting_buckets(settings, width=width, height=height)
    if not fitting:
        raise ImageRejected(TOO_SMALL)
    cumulative = np.cumsum([weight for weight, _ in fitting])
    index = int(np.searchsorted(cumulative, chance * cumulative[-1], side="right"))
    return fitting[min(index, len(fitting) - 1)][1]

"""Turns drawn samples into counts in fixed bins, which add up over tasks in any grouping.

Knows draws and sizes, no files and no pictures.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from datagen.dataset.records import DrawnSample
from datagen.degradation.parameters import GaussianNoiseParams, JpegParams, PoissonNoiseParams
from datagen.records import FrozenModel

# Lower bounds of the bins; the last one takes everything above it too.
SCALE = tuple(1 + step / 2 for step in range(63))
"""Downscale factors of the LQ, halves."""
PHOTO_SIDE = (0, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Shorter side of the photo, pixels."""
GAUSSIAN_SIGMA = tuple(range(51))
"""Standard deviation of Gaussian noise, 8-bit levels."""
POISSON_SCALE = tuple(step / 10 for step in range(41))
JPEG_QUALITY = tuple(range(0, 100, 5))


class Counts(FrozenModel):
    """How many samples (noise and JPEG: how many operations on the LQ) fell into each bin."""

    scale: tuple[int, ...] = (0,) * len(SCALE)
    photo_side: tuple[int, ...] = (0,) * len(PHOTO_SIDE)
    """A photo counts once for each of its samples."""
    gaussian_sigma: tuple[int, ...] = (0,) * len(GAUSSIAN_SIGMA)
    poisson_scale: tuple[int, ...] = (0,) * len(POISSON_SCALE)
    jpeg_quality: tuple[int, ...] = (0,) * len(JPEG_QUALITY)
    buckets: dict[str, int] = {}

    def plus(self, other: Counts) -> Counts:
        return Counts(
            scale=_sum(self.scale, other.scale),
            photo_side=_sum(self.photo_side, other.photo_side),
            gaussian_sigma=_sum(self.gaussian_sigma, other.gaussian_sigma),
            poisson_scale=_sum(self.poisson_scale, other.poisson_scale),
            jpeg_quality=_sum(self.jpeg_quality, other.jpeg_quality),
            buckets=_in_order(Counter(self.buckets) + Counter(other.buckets)),
        )


class CountTally:
    """Collects counts while samples stream by."""

    def __init__(self) -> None:
        self._scale = [0] * len(SCALE)
        self._photo_side = [0] * len(PHOTO_SIDE)
        self._gaussian_sigma = [0] * len(GAUSSIAN_SIGMA)
        self._poisson_scale = [0] * len(POISSON_SCALE)
        self._jpeg_quality = [0] * len(JPEG_QUALITY)
        self._buckets: Counter[str] = Counter()

    def add(self, drawn: DrawnSample, *, photo_side: int) -> None:
        """Counts one sample; `photo_side` is the shorter side of its photo, pixels."""
        self._scale[_bin(SCALE, drawn.scale)] += 1
        self._photo_side[_bin(PHOTO_SIDE, photo_side)] += 1
        self._buckets[drawn.bucket] += 1
        for operation in drawn.lq.operations:
            match operation:
                case GaussianNoiseParams():
                    self._gaussian_sigma[_bin(GAUSSIAN_SIGMA, operation.sigma)] += 1
                case PoissonNoiseParams():
                    self._poisson_scale[_bin(POISSON_SCALE, operation.scale)] += 1
                case JpegParams():
                    self._jpeg_quality[_bin(JPEG_QUALITY, operation.quality)] += 1

    def counts(self) -> Counts:
        return Counts(
            scale=tuple(self._scale),
            photo_side=tuple(self._photo_side),
            gaussian_sigma=tuple(self._gaussian_sigma),
            poisson_scale=tuple(self._poisson_scale),
            jpeg_quality=tuple(self._jpeg_quality),
            buckets=_in_order(self._buckets),
        )


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """The lower bound of the bin in which that part of the counts is reached; None without any."""
    reached, wanted = 0, part * sum(counts)
    for bound, count in zip(bounds, counts, strict=True):
        reached += count
        if count and reached >= wanted:
            return bound
    return None


def _bin(bounds: tuple[float, ...], value: float) -> int:
    return max(0, bisect_right(bounds, value) - 1)


def _sum(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _in_order(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))

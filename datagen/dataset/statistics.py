"""Turns stored samples into the statistics of a dataset: counts in fixed bins, latent moments.

Every task records what its samples add; these records add up to the same numbers in the order of
their tasks always.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce

import cv2
import numpy as np

from datagen.dataset.records import CodecRecord, DrawnSample
from datagen.degradation.parameters import GaussianNoiseParams, JpegParams, PoissonNoiseParams
from datagen.records import FrozenModel

# Lower bounds of the bins; the last one takes everything above it too.
SCALE = tuple(1 + step / 2 for step in range(63))  # downscale factors of the LQ, halves
PHOTO_SIDE = (0, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Shorter side of the photo, pixels."""
GAUSSIAN_SIGMA = tuple(range(51))  # standard deviation of Gaussian noise, 8-bit levels
POISSON_SCALE = tuple(step / 10 for step in range(41))
JPEG_QUALITY = tuple(range(0, 100, 5))
_BINS: dict[str, tuple[float, ...]] = {
    "scale": SCALE,
    "photo_side": PHOTO_SIDE,
    "gaussian_sigma": GAUSSIAN_SIGMA,
    "poisson_scale": POISSON_SCALE,
    "jpeg_quality": JPEG_QUALITY,
}


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
        buckets = Counter(self.buckets) + Counter(other.buckets)
        sums = {name: np.add(getattr(self, name), getattr(other, name)).tolist() for name in _BINS}
        return Counts.model_validate({**sums, "buckets": dict(sorted(buckets.items()))})


class LatentStatistics(FrozenModel):
    """Over all positions of all HQ latents, one value for each channel; no position where none are
    stored."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    positions: int
    """Number of positions."""


class Statistics(FrozenModel):
    latent: LatentStatistics
    counts: Counts
    """What `histograms.png` shows."""


class PartialStatistics(FrozenModel):
    """What some samples add to the statistics."""

    codec: CodecRecord | None
    positions: int
    """Latent positions counted, all samples together."""
    latent_sum: tuple[float, ...]
    latent_square_sum: tuple[float, ...]
    counts: Counts

    @classmethod
    def of(cls, statistics: Statistics, codec: CodecRecord | None) -> PartialStatistics:
        """Those of a finished dataset that is to grow."""
        mean, std = np.array(statistics.latent.mean), np.array(statistics.latent.std)
        positions = statistics.latent.positions
        return cls(
            codec=codec,
            positions=positions,
            latent_sum=tuple((mean * positions).tolist()),
            latent_square_sum=tuple(((std**2 + mean**2) * positions).tolist()),
            counts=statistics.counts,
        )


class StatisticsCollector:
    """Adds up the samples of a task as they are stored."""

    def __init__(self, codec: CodecRecord | None) -> None:
        self._codec = codec
        self._positions = 0
        self._sum = np.zeros(codec.channels if codec else 0)
        self._square_sum = np.zeros_like(self._sum)
        self._latent: np.ndarray | None = None
        """As float32: memory that is used again."""
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._buckets: Counter[str] = Counter()

    def add(self, hq_latent: np.ndarray | None, drawn: DrawnSample, *, photo_side: int) -> None:
        """Counts a stored sample: its latent (C, h, w), if it has one, and the shorter side of its
        photo in pixels."""
        if hq_latent is not None:
            rows = hq_latent.reshape(len(hq_latent), -1)
            # The same float32 as NumPy's `astype`, in an eighth of the time.
            latent = self._latent = cv2.add(rows, 0, dst=self._latent, dtype=cv2.CV_32F)
            self._positions += latent.shape[1]
            self._sum += latent.sum(axis=1, dtype=np.float64)
            self._square_sum += np.einsum("cp,cp->c", latent, latent, dtype=np.float64)
        self._buckets[drawn.bucket] += 1
        self._values["scale"].append(drawn.scale)
        self._values["photo_side"].append(photo_side)
        for operation in drawn.lq.operations if drawn.lq is not None else ():
            match operation:
                case GaussianNoiseParams():
                    self._values["gaussian_sigma"].append(operation.sigma)
                case PoissonNoiseParams():
                    self._values["poisson_scale"].append(operation.scale)
                case JpegParams():
                    self._values["jpeg_quality"].append(operation.quality)

    def result(self) -> PartialStatistics:
        counts = {name: _counted(self._values[name], bounds) for name, bounds in _BINS.items()}
        buckets = dict(sorted(self._buckets.items()))
        return PartialStatistics(
            codec=self._codec,
            positions=self._positions,
            latent_sum=tuple(self._sum.tolist()),
            latent_square_sum=tuple(self._square_sum.tolist()),
            counts=Counts.model_validate({**counts, "buckets": buckets}),
        )


def statistics_of(parts: Iterable[PartialStatistics]) -> Statistics:
    """All of them together, added in their order; there must be at least one."""
    parts = list(parts)
    positions = sum(part.positions for part in parts)
    mean = np.divide(sum(np.array(part.latent_sum) for part in parts), max(1, positions))
    squares = sum(np.array(part.latent_square_sum) for part in parts)
    square = np.divide(squares, max(1, positions))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return Statistics(
        latent=LatentStatistics(mean=mean.tolist(), std=std.tolist(), positions=positions),
        counts=reduce(Counts.plus, (part.counts for part in parts)),
    )


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float:
    """The value that this part of the counts, of which there must be some, is below; those of a bin
    are taken to be spread evenly in it, those of the last one, which has no end, to be its bound.
    """
    edges = [*bounds, bounds[-1]]
    return float(np.interp(part * sum(counts), np.cumsum([0, *counts]), edges))


def _counted(values: Sequence[float], bounds: Sequence[float]) -> list[int]:
    bins = np.maximum(np.searchsorted(bounds, values, side="right") - 1, 0)
    return np.bincount(bins, minlength=len(bounds)).tolist()

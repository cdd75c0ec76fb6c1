"""What differences between methods are worth: bootstrap intervals over photos.

A method restores photos of very different difficulty, so that intervals of two means overlap even
where one is better on every photo. Differences are therefore taken photo by photo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES, SHARE = 2000, 0.95
LEAST = 5
"""Photos below which an interval says nothing."""


@dataclass(frozen=True)
class Interval:
    """A mean over photos, and where it would lie for other photos of the same kind."""

    mean: float
    low: float
    high: float
    """The middle 95 % of the means of photos drawn with replacement; NaN for too few photos."""
    count: int
    """Photos with a finite value."""

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than chance; never for too few photos."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Mapping[str, float]) -> Interval:
    """Of one number for each photo; those that are not finite are left out."""
    found = np.array([one for one in values.values() if np.isfinite(one)])
    if not len(found):
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(found.mean())
    if len(found) < LEAST:
        return Interval(mean, np.nan, np.nan, len(found))
    # Each photo's number of draws in each resample; the same for all methods.
    draws = np.random.default_rng(0).multinomial(
        len(found), np.full(len(found), 1 / len(found)), size=RESAMPLES
    )
    means = draws @ found / len(found)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Interval(mean, float(low), float(high), len(found))


def paired_difference(ours: Mapping[str, float], others: Mapping[str, float]) -> Interval:
    """Of the photos that both have, ours minus theirs."""
    return mean_interval(
        {photo: ours[photo] - others[photo] for photo in sorted(ours.keys() & others)}
    )

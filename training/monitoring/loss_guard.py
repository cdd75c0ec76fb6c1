"""Detects a loss that is finite but has diverged."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence

WINDOW, FIRST_STEPS = 100, 20
"""Steps of the running median, and steps in which few of these, all low by chance, may not yet
count as usual."""


class LossGuard:
    """Compares each step's squared error, from the first on, with what is usual.

    Not `loss/total`: under dynamic weighting it contains the logarithm of an error and passes
    through zero, so that a multiple of it means nothing.
    """

    def __init__(self, max_growth: float | None) -> None:
        """
        Args:
            max_growth: largest allowed ratio of an error to the usual one; None disables the check.
        """
        self.max_growth = max_growth
        self.errors: deque[float] = deque(maxlen=WINDOW)
        """Recent errors, the baseline of the next one; a restarted run continues with them."""

    @property
    def usual(self) -> float:
        """The median; in the first steps the error before them, where that is larger."""
        median = statistics.median(self.errors)
        return median if len(self.errors) > FIRST_STEPS else max(median, self.errors[0])

    def begin(self, errors: Iterable[Sequence[float]]) -> None:
        """Takes the errors of some groups of samples before the first step, for each term: one may
        be zero yet, as that of self-distillation is."""
        finite = [[error for error in one if math.isfinite(error)] for one in errors]
        # The low median, as the outlier may be among them.
        medians = [statistics.median_low(one) for one in finite if one]
        if medians:
            self.errors.append(max(medians))

    def diverged(self, error: float) -> bool:
        """Whether a step's error is too large; otherwise it is added to the baseline."""
        if self.max_growth is not None and self.errors:
            limit = self.max_growth * self.usual
            if error > limit > 0:
                return True
        self.errors.append(error)
        return False

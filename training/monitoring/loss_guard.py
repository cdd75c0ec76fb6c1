"""Detects a loss that is finite but has diverged."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW, MIN_STEPS = 100, 20
"""Steps of the running median, and steps needed before one can be judged."""


class LossGuard:
    """Compares each step's squared error with the running median.

    Not `loss/total`: under dynamic weighting it contains the logarithm of an error and passes
    through zero, so that a multiple of it means nothing.
    """

    def __init__(self, max_growth: float | None) -> None:
        """
        Args:
            max_growth: largest allowed ratio of an error to the median; None disables the check.
        """
        self.max_growth = max_growth
        self.errors: deque[float] = deque(maxlen=WINDOW)
        """Recent errors, the baseline of the next one; a restarted run continues with them."""

    @property
    def median(self) -> float:
        return statistics.median(self.errors)

    def diverged(self, error: float) -> bool:
        """Whether a step's error is too large; otherwise it is added to the baseline."""
        can_judge = len(self.errors) >= MIN_STEPS
        if self.max_growth is not None and can_judge and error > self.max_growth * self.median:
            return True
        self.errors.append(error)
        return False

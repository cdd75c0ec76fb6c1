"""Notices a loss that is finite but has left its course. Knows no stage and no step."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 100
"""Steps of the running median."""
LEAST = 20
"""Steps that must be known before one can be judged."""


class LossGuard:
    """The running median of an error that is never negative, and how far a step may be above it.

    The squared error is watched, not `loss/total`: that one holds the logarithm of an error under
    dynamic weighting, passes through zero, and no multiple of it means anything.
    """

    def __init__(self, max_growth: float | None) -> None:
        """
        Args:
            max_growth: times the median that an error may reach; None never judges.
        """
        self.max_growth = max_growth
        self._errors: deque[float] = deque(maxlen=WINDOW)

    @property
    def errors(self) -> tuple[float, ...]:
        """What the next error is judged by."""
        return tuple(self._errors)

    def remember(self, errors: Iterable[float]) -> None:
        """Goes on from what `errors` gave: a run that stopped must not pass the same step later."""
        self._errors = deque(errors, maxlen=WINDOW)

    @property
    def median(self) -> float:
        return statistics.median(self._errors)

    def explodes(self, error: float) -> bool:
        """Whether a step's error is too large; one that is not counts from now on."""
        known = self.max_growth is not None and len(self._errors) >= LEAST
        if known and error > self.max_growth * self.median:  # type: ignore[operator]
            return True
        self._errors.append(error)
        return False

"""Times the phases between a command and the first step of a stage.

Uses the wall clock, as phases may run in several processes and on several machines.
"""

from __future__ import annotations

import time

import psutil


class StartupTimer:
    """Splits the time since `started` into phases, each ended by `mark`."""

    def __init__(self, started: float) -> None:
        self.restart(started)

    def restart(self, started: float) -> None:
        """Drops all phases; `started` is in seconds since the epoch."""
        self._last = started
        self.seconds: dict[str, float] = {}
        """Of each phase, in order."""

    def mark(self, phase: str, *, at: float | None = None) -> None:
        """Ends a phase, now or `at` seconds since the epoch."""
        now = time.time() if at is None else at
        self.seconds[phase] = max(0.0, now - self._last)
        self._last = now


def process_started() -> float:
    """Start time of this process, in seconds since the epoch."""
    return float(psutil.Process().create_time())


startup = StartupTimer(process_started())
"""The timer of this process, which trains one stage at a time; its first phase is imports."""

"""Where the time between a command and the first step of a stage goes, phase by phase.

Uses the wall clock, as the phases may be in several processes and on several machines.
"""

from __future__ import annotations

import time

import psutil


class StartupTimer:
    """Splits the time since `began` into phases, each ended by `mark`."""

    def __init__(self, began: float) -> None:
        self.begin(began)

    def begin(self, began: float) -> None:
        """Starts again.

        Args:
            began: seconds since the epoch.
        """
        self._last = began
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str, *, at: float | None = None) -> None:
        """Ends a phase, now or `at` seconds since the epoch."""
        now = time.time() if at is None else at
        self.seconds[phase] = max(0.0, now - self._last)
        self._last = now

    def metrics(self) -> dict[str, float]:
        """Seconds of each phase and of all, named as in MLflow."""
        phases = {f"start/{phase}_seconds": value for phase, value in self.seconds.items()}
        return phases | {"start/seconds": sum(self.seconds.values())}


def process_began() -> float:
    """When this process began, in seconds since the epoch."""
    began: float = psutil.Process().create_time()
    return began


startup = StartupTimer(process_began())
"""Of this process, which trains one stage at a time; imports are its first phase."""

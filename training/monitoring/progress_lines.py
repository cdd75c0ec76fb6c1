"""A stage's progress as lines of the log, for launchers that show none themselves, as `torchrun`.

`training.run` shows this log. Under Ray it is silent: `flowmapsr train` has its own display.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from training.run_dir.records import StageProgress
from training.settings.stage import StageSettings

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class ProgressLines:
    """Logs the first step of a start, then a line every few seconds, and the last step."""

    def __init__(
        self, stage: StageSettings, *, on_gpus: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage = stage
        self._memory = "GPU memory" if on_gpus else "memory"
        self._clock = clock
        self._last_line = clock()

    def first_step(self, step: int, seconds: float) -> None:
        """That step has ended, so many seconds after the start."""
        log.info(
            "%s, the first after %.1f s",
            _position(self._stage.name, step, self._stage.steps),
            seconds,
        )
        self._last_line = self._clock()

    def show(self, progress: StageProgress, *, last: bool) -> None:
        """Logs where the stage is, when it is time to, and at its end or when it is stopped."""
        if last or self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            log.info("%s", self._line(progress))
            self._last_line = self._clock()

    def _line(self, progress: StageProgress) -> str:
        parts = [
            _position(progress.stage, progress.step, progress.steps),
            f"{progress.headline} {progress.headline_value:.4f}",
            f"{progress.images_per_second:.1f} images/s",
            f"{progress.data_wait_fraction:.0%} waiting for data",
            f"{progress.memory_gb:.1f} GB of {self._memory}",
        ]
        left = progress.seconds_left(self._stage.images_per_step)
        if left:
            parts.append(f"{timedelta(seconds=round(left))} left")
        return ", ".join(parts)


def _position(stage: str, step: int, steps: int) -> str:
    return f"{stage}: step {step} of {steps}"

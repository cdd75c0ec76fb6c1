"""A stage's progress as lines of the log, for launchers that show none, as `torchrun`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from training.monitoring.worker_log import PROGRESS
from training.run_dir.records import StageProgress
from training.settings.stage import StageSettings

SECONDS_BETWEEN_LINES = 10.0


class ProgressLines:
    """Logs a line every few seconds, and the last step."""

    def __init__(
        self, stage: StageSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._images_per_step = stage.images_per_step
        self._clock = clock
        self._last_line = clock()

    def show(self, progress: StageProgress, *, last: bool) -> None:
        """Logs where the stage is, when it is time to, and at its end or when it is stopped."""
        if not last and self._clock() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        left = progress.seconds_left(self._images_per_step)
        PROGRESS.info(
            "  ".join(
                filter(
                    None,
                    (
                        f"{progress.stage}: {progress.step}/{progress.steps} steps",
                        f"{timedelta(seconds=round(left))} left" if left else "",
                        progress.note,
                    ),
                )
            )
        )
        self._last_line = self._clock()

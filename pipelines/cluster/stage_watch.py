"""Shows what the workers of a training write to its run folder: progress, log and failures."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from pipelines.terminal.progress import Progress
from training.monitoring.worker_log import FirstWorkerLog
from training.run_dir.best_effort import tells_full_disk
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import end_reason, read_failures

log = logging.getLogger(__name__)

FULL_BYTES = 1 << 20
"""A disk with less free space than this counts as full."""


class RunWatch:
    """Logs, where the command runs, what the first worker logs and which workers fail."""

    def __init__(self, run: Path, *, most_failures: int) -> None:
        self._run, self._most = run, most_failures
        self._worker_log = FirstWorkerLog(run)
        self._before = self._failures = len(read_failures(run))

    @property
    def failed(self) -> bool:
        """Whether workers have failed since the command began."""
        return len(read_failures(self._run)) > self._before

    def show_log(self) -> None:
        """Logs the new lines."""
        for line in self._worker_log.new_lines():
            log.log(line.level, "%s", line.text)

    def show_failure(self, stage: StagePaths) -> bool:
        """Logs that workers have failed and are started again; returns whether they have."""
        failures = read_failures(self._run)
        new, self._failures = failures[self._failures :], len(failures)
        if not new or not new[-1].again:
            return False  # of the last failure the command's error tells
        log.warning(
            "%s: %s; failure %d of %d: starting again from the last checkpoint",
            *(stage.name, end_reason(stage), new[-1].number, self._most),
        )
        return True


class StageWatch:
    """Shows the progress that workers write, or the reason that `waiting` gives for none yet."""

    def __init__(
        self,
        progress: Progress,
        folder: StagePaths,
        waiting: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._folder, self._waiting = progress, folder, waiting
        self._clock = clock
        self._last, self._since = 0.0, clock()
        self._was_full = False
        self.start_over()

    def start_over(self) -> None:
        """The workers start: the progress on disk is that of earlier ones."""
        self._stale = self._read()

    def update(self) -> StageProgress | None:
        """Updates the display; the progress of these workers, None before their first step."""
        current = self._read()
        self._warn_of_full_disk()
        if current is None or current == self._stale:
            self._progress.advance(0, note=self._waiting())
            return None
        if current.updated != self._last:  # by this clock: that of the workers may be another one
            self._last, self._since = current.updated, self._clock()
        still = current.stands_still(self._clock() - self._since)
        self._progress.reach(current.step, note=still or current.note)
        return current

    def _warn_of_full_disk(self) -> None:
        """Once, unless this process has told it: the workers' own warnings may not fit on it."""
        folder = self._folder.root
        is_full = folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES
        if is_full and not self._was_full and tells_full_disk():
            log.warning(
                "%s: no space left on this disk; training continues, but cannot save until this is "
                "fixed",
                folder,
            )
        self._was_full = is_full

    def _read(self) -> StageProgress | None:
        try:
            return StageProgress.model_validate_json(self._folder.progress.read_bytes())
        except (OSError, ValidationError):
            return None  # the workers have not written it yet

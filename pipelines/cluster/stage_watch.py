"""Shows the progress that the workers of a training write to its run folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from pydantic import ValidationError

from pipelines.terminal.progress import Progress
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import read_starts

log = logging.getLogger(__name__)

FULL_BYTES = 1 << 20
"""A disk with less free space than this counts as full."""


class StageWatch:
    """Shows the progress that workers write, or the reason that `waiting` gives for none yet."""

    def __init__(self, progress: Progress, folder: StagePaths, waiting: Callable[[], str]) -> None:
        self._progress = progress
        self._waiting = waiting
        self._folder = folder
        self._starts = len(read_starts(folder))
        self._path = folder.progress
        self._stale = self._read()
        self._warned = ""

    def update(self) -> None:
        """Updates the display."""
        self._log_starts()
        current = self._read()
        self._warn(current)
        if current is None or current == self._stale:
            self._progress.advance(0, note=self._waiting())
            return
        self._progress.reach(
            current.step,
            note=f"{current.headline} {current.headline_value:.4f}, "
            f"{current.images_per_second:.1f} images/s",
        )

    def _log_starts(self) -> None:
        """Logs when the stage continues from a checkpoint, and what was wrong before."""
        starts = read_starts(self._folder)
        for start in starts[self._starts :]:
            for trouble in filter(None, (start.ended_before, start.skipped_checkpoints)):
                log.warning(
                    "stage %r continues from step %d: %s", self._folder.name, start.step, trouble
                )
        self._starts = len(starts)

    def _warn(self, current: StageProgress | None) -> None:
        """Logs why nothing can be saved while training continues: once, until it changes."""
        problem = "" if current is None or current == self._stale else current.problem
        folder = self._path.parent
        if not problem and folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES:
            problem = f"{self._path}: no space left on this disk"
        if problem and problem != self._warned:
            log.warning("%s; training continues, but cannot save until this is fixed", problem)
        self._warned = problem

    def _read(self) -> StageProgress | None:
        try:
            return StageProgress.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None  # the workers have not written it yet

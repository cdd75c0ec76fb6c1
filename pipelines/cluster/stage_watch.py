"""Shows the progress and the warnings that the workers of a training write to its run folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from pipelines.terminal.progress import Progress
from training.run_dir.best_effort import tells_full_disk
from training.run_dir.paths import RunPaths, StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import read_starts

log = logging.getLogger(__name__)

FULL_BYTES = 1 << 20
"""A disk with less free space than this counts as full."""


def keep_warnings(run: Path) -> None:
    """In the first worker, whose console nobody sees: adds its warnings to a file of the run."""
    handler = logging.FileHandler(RunPaths(run).warnings, delay=True)
    handler.setLevel(logging.WARNING)
    for package in ("datagen", "training"):
        logging.getLogger(package).addHandler(handler)


class WorkerWarnings:
    """Logs, where the command runs, what `keep_warnings` adds from now on."""

    def __init__(self, run: Path) -> None:
        self._path = RunPaths(run).warnings
        self._shown = self._size()

    def show(self) -> None:
        """Logs the new lines."""
        if self._size() == self._shown:
            return
        with self._path.open("rb") as file:
            file.seek(self._shown)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the rest of it is still being written
                self._shown += len(line)
                log.warning("%s", line.decode(errors="replace").rstrip())

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0


class StageWatch:
    """Shows the progress that workers write, or the reason that `waiting` gives for none yet."""

    def __init__(self, progress: Progress, folder: StagePaths, waiting: Callable[[], str]) -> None:
        self._progress = progress
        self._waiting = waiting
        self._folder = folder
        self._starts = len(read_starts(folder))
        self._path = folder.progress
        self._stale = self._read()
        self._was_full = False

    def update(self) -> None:
        """Updates the display."""
        self._log_starts()
        current = self._read()
        self._warn_of_full_disk()
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
            if start.is_restart:
                log.warning(
                    "stage %r continues from step %d: %s",
                    *(self._folder.name, start.step, start.ended_before),
                )
        self._starts = len(starts)

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
            return StageProgress.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None  # the workers have not written it yet

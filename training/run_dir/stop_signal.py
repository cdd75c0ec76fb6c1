"""Asks a training to save a checkpoint and stop."""

from __future__ import annotations

import signal
from pathlib import Path

from training.run_dir.paths import RunPaths


class StopSignal:
    """Becomes true when this process gets SIGTERM, or when a `stop` file appears in the run.

    The file reaches workers on other machines and in threads that receive no signals.
    """

    def __init__(self, run: Path) -> None:
        self._file = RunPaths(run).stop
        self._signaled = False

    def ask(self) -> None:
        self._file.touch()

    def clear(self) -> None:
        """Removes the file, which a killed start may have left; only for the run's owner."""
        self._file.unlink(missing_ok=True)

    def listen(self) -> None:
        """Installs the SIGTERM handler; only the main thread may."""
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_: object) -> None:
        self._signaled = True

    def __call__(self) -> bool:
        return self._signaled or self._file.exists()

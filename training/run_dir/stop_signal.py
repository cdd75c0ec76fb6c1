"""Asks a training to save a checkpoint and stop."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

from datagen.io.end_signals import on_end_signal
from training.run_dir.paths import RunPaths


class StopSignal:
    """Becomes true at a signal that asks this process to end (`datagen/io/end_signals.py`, or
    Ctrl-C), or when a `stop` file appears in the run.

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
        """Installs the handlers; only the main thread may."""
        on_end_signal(self._set)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._set()

    def _set(self) -> None:
        self._signaled = True

    def __call__(self) -> bool:
        return self._signaled or self._file.exists()

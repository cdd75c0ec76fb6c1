"""What each worker says, in `<run>/logs/worker-N.log`; the launcher shows what the first one does.

Every line has its time, level and logger, so that each can be read alone.
"""

from __future__ import annotations

import faulthandler
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.run_dir.best_effort import best_effort
from training.run_dir.paths import RunPaths

PACKAGES = ("datagen", "training")
PROGRESS = logging.getLogger("training.progress")
"""Of lines that a launcher with a display of its own does not need."""
_LINE = re.compile(r"\S+ \S+ (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<text>.*)")
_CRASH = re.compile(rb"^Fatal Python error: (.+)$", re.MULTILINE)
_LAST_BYTES = 1 << 16


class _Kept(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        begin = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        return "\n".join(begin + line for line in super().format(record).splitlines())


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by what cannot be saved, not for each line."""


def keep_log(run: Path, rank: int) -> None:
    """Keeps what this worker logs from now on, the warnings of libraries, and where it crashes."""
    path = RunPaths(run).worker_log(rank)
    with best_effort(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _File(path)
        assert handler.stream is not None  # opened at once
        handler.setFormatter(_Kept())
        logging.getLogger().addHandler(handler)
        faulthandler.enable(handler.stream)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)


class Said(NamedTuple):
    """A line of the first worker for a person."""

    level: int
    text: str


class FirstWorkerLog:
    """Reads what the first worker adds to its log from now on."""

    def __init__(self, run: Path) -> None:
        self._path = RunPaths(run).worker_log(0)
        self._read = self._size()

    def new_lines(self) -> Iterator[Said]:
        """Of our own packages, without those of progress."""
        if self._size() == self._read:
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the rest of it is still being written
                self._read += len(line)
                found = _LINE.fullmatch(line.decode(errors="replace").rstrip("\n"))
                if found is None or found["logger"] == PROGRESS.name:
                    continue
                if found["logger"].partition(".")[0] in PACKAGES:
                    yield Said(logging.getLevelNamesMapping()[found["level"]], found["text"])

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0


def crash_of(run: Path, rank: int) -> str | None:
    """Of what a worker died that crashed in C, such as `Segmentation fault`, by the end of its
    log."""
    path = RunPaths(run).worker_log(rank)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST_BYTES))
        end = file.read()
    *_, crash = [None, *_CRASH.finditer(end)]
    if crash is None:
        return None
    later = end[crash.end() :].decode(errors="replace").splitlines()
    return None if any(map(_LINE.fullmatch, later)) else crash[1].decode(errors="replace")

"""What each worker says, in `<run>/logs/worker-N.log`; the launcher shows what the first one does.

Every line has its time, level and logger, so that each can be read alone: as text or as JSON.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.monitoring.json_log import BEGIN, chosen, json_wanted
from training.run_dir.best_effort import best_effort
from training.run_dir.paths import RunPaths

PACKAGES = ("datagen", "training")
PROGRESS = logging.getLogger("training.progress")
"""Of lines that a launcher with a display of its own does not need."""
_TEXT = re.compile(r"\S+ \S+ (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<text>.*)")
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
        handler.setFormatter(chosen(_Kept()))
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(json_wanted())
        crashes = _File(crash_log(run, rank), mode="w") if json_wanted() else handler
        assert crashes.stream is not None
        faulthandler.enable(crashes.stream)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)


def crash_log(run: Path, rank: int) -> Path:
    """Where a crash in C leaves its stack traces: beside the log, if that is lines of JSON."""
    path = RunPaths(run).worker_log(rank)
    return path.with_suffix(".crash") if json_wanted() else path


class Said(NamedTuple):
    """A line of the first worker for a person."""

    level: int
    text: str


def _read(line: str) -> tuple[str, Said] | None:
    """The logger of a line and what it says; None for a line that no logger wrote."""
    levels = logging.getLevelNamesMapping()
    if line.startswith(BEGIN):
        found = json.loads(line)
        return found["logger"], Said(levels[found["level"].upper()], found["message"])
    text = _TEXT.fullmatch(line)
    return text and (text["logger"], Said(levels[text["level"]], text["text"]))


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
                found = _read(line.decode(errors="replace").rstrip("\n"))
                if found is None or found[0] == PROGRESS.name:
                    continue
                if found[0].partition(".")[0] in PACKAGES:
                    yield found[1]

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0


def crash_of(run: Path, rank: int) -> str | None:
    """Of what a worker died that crashed in C, such as `Segmentation fault`, by the end of its
    log."""
    path = crash_log(run, rank)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST_BYTES))
        end = file.read()
    *_, crash = [None, *_CRASH.finditer(end)]
    if crash is None:
        return None
    later = end[crash.end() :].decode(errors="replace").splitlines()
    return None if any(map(_TEXT.fullmatch, later)) else crash[1].decode(errors="replace")

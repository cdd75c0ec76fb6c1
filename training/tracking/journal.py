"""The journals of a run: events that wait on disk for MLflow, and their metrics read back."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from pydantic import ValidationError

from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.best_effort import append_lines_atomically, best_effort
from training.run_dir.further import place_in_run
from training.run_dir.paths import (
    CURVES_JOURNAL,
    FILES_JOURNAL,
    METRICS_JOURNAL,
    MODELS_JOURNAL,
    PICTURES_JOURNAL,
    RunPaths,
)
from training.tracking.events import EVENT, Artifact, End, Event, Metrics, Model, Picture

log = logging.getLogger(__name__)

LONGEST_END = 20_000
"""Bytes; longer than the line of any `End`."""


class Journal:
    """A file with a line for each event, and how many of its bytes were sent to which run.

    One process appends. Several may send: each batch is sent under a lock, which also covers the
    new offset, so that nothing is sent twice. Files below the journal's folder are named from
    there, as the folder may be moved or copied before they are sent.
    """

    def __init__(self, home: Path, name: str = METRICS_JOURNAL, *, batch: int = 500) -> None:
        self.batch = batch
        self.path = home / name
        self.unwritten = ""
        """Lines that could not be written, e.g. to a full disk."""
        self._appending = threading.Lock()
        self._offset = self.path.with_suffix(".sent")
        self._sending = home / f".{self.path.stem}.lock"
        self._sent = _Sent()

    def append(self, event: Event) -> None:
        """Adds an event; one that cannot be written is written by the next call."""
        event = _with_path(event, partial(_below, self.path.parent))
        with self._appending:
            self.unwritten += event.model_dump_json() + "\n"
            with best_effort(str(self.path)):
                append_lines_atomically(self.path, self.unwritten)
                self.unwritten = ""

    def remove(self) -> None:
        """Removes the file and the record of what was sent."""
        self.path.unlink(missing_ok=True)
        self.forget_sent()

    def forget_sent(self) -> None:
        self._offset.unlink(missing_ok=True)

    @property
    def all_sent(self) -> bool:
        """Whether all complete lines are sent."""
        return not self._unsent(self._sent_to_last(), 1)

    @property
    def unsent(self) -> int:
        """The number of complete lines that are not sent."""
        start = self._sent_to_last()
        if self._size() == start:
            return 0
        with self.path.open("rb") as file:
            file.seek(start)
            return sum(line.endswith(b"\n") for line in file)

    @property
    def ended(self) -> bool:
        """Whether the last event is the end of the run, or there is none."""
        if not self.path.exists():
            return True
        with self.path.open("rb") as file:
            file.seek(max(0, self._size() - LONGEST_END))
            lines = file.read().splitlines()
        return not lines or isinstance(_parse(lines[-1]), End)

    def send(self, send: Callable[[list[Event]], None], *, run_id: str) -> int:
        """Passes the next unsent events of this run to `send`; returns the number of lines sent."""
        if self._size() == self._sent_to(run_id):
            return 0
        with FileLock(self._sending):
            start = self._sent_to(run_id)
            lines = self._unsent(start, self.batch)
            if not lines:
                return 0
            offsets = itertools.accumulate(map(len, lines), initial=start)
            parsed = [(line, _parse(line), at) for line, at in zip(lines, offsets, strict=False)]
            send([self._here(event, at) for _, event, at in parsed if event is not None])
            for line in (line for line, event, _ in parsed if event is None):
                log.warning("a damaged line of %s is not sent: %.80r", self.path, line)
            self._sent = _Sent(run_id=run_id, bytes=start + sum(map(len, lines)))
            with best_effort(str(self._offset)):
                storage.write_bytes(str(self._offset), self._sent.model_dump_json().encode())
        return len(lines)

    def _here(self, event: Event, offset: int) -> Event:
        """The event of the line at an offset, with the paths of where its files are now."""
        if isinstance(event, Model) and "run" in event.tags:
            run, now = event.tags["run"], str(self.path.parent.parents[1])
            tags = {name: value.replace(run, now) for name, value in event.tags.items()}
            event = event.model_copy(update={"tags": tags})
        home, name = self.path.parent, self.path.name
        return _with_path(
            event, lambda path: place_in_run(home, home / path, journal=name, offset=offset)
        )

    def _unsent(self, start: int, most: int) -> list[bytes]:
        """The first complete lines after an offset."""
        if self._size() == start:
            return []
        with self.path.open("rb") as file:
            file.seek(start)
            lines = (file.readline() for _ in range(most))
            # Stops at a line that is still being written: its rest would be read as a line.
            return list(itertools.takewhile(lambda line: line.endswith(b"\n"), lines))

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _sent_to(self, run_id: str) -> int:
        """Bytes sent to the run by any process; 0 for a new run. When that is not known, all are
        sent again, which changes nothing in MLflow."""
        known = (self._sent, self._sent_on_disk())
        sent = max((one.bytes for one in known if one.run_id == run_id), default=0)
        return sent if sent <= self._size() else 0

    def _sent_to_last(self) -> int:
        """Bytes sent to the run that was last sent to."""
        return self._sent_to(self._sent.run_id or self._sent_on_disk().run_id)

    def _sent_on_disk(self) -> _Sent:
        try:
            return _Sent.model_validate_json(self._offset.read_bytes())
        except (OSError, ValidationError):
            return _Sent()


class _Sent(FrozenModel):
    """How much of a journal was sent to which run."""

    run_id: str = ""
    bytes: int = 0


def _with_path(event: Event, change: Callable[[Path], Path]) -> Event:
    """The event with the path of its file changed, if it has one on a disk."""
    if not isinstance(event, Picture | Artifact | Model) or "://" in event.path:
        return event
    return event.model_copy(update={"path": str(change(Path(event.path)))})


def _below(folder: Path, path: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()


def _parse(line: str | bytes) -> Event | None:
    """The event of a line; None for a line that a kill or a full disk left incomplete."""
    try:
        return EVENT.validate_json(line)
    except ValidationError:
        return None


class Journals(NamedTuple):
    """The journals of a stage's or a run's folder. Pictures, files and models are sent one by one
    and apart from the metrics, which a failing file store must not delay."""

    metrics: Journal
    files: Journal
    curves: Journal
    """Of a run: what rank 0 of its stages adds, as its `metrics` are the launcher's."""
    pictures: Journal
    models: Journal


def journals(home: Path) -> Journals:
    return Journals(
        metrics=Journal(home),
        files=Journal(home, FILES_JOURNAL, batch=1),
        curves=Journal(home, CURVES_JOURNAL),
        pictures=Journal(home, PICTURES_JOURNAL, batch=1),
        models=Journal(home, MODELS_JOURNAL, batch=1),
    )


def forget_sent(run: Path) -> None:
    """Makes all events of a run and its stages unsent, as a copy's are for its own MLflow runs."""
    for folder in (run, *RunPaths(run).stages.glob("*")):
        for journal in journals(folder):
            journal.forget_sent()


class Series(NamedTuple):
    """All values of one metric, in order of writing."""

    steps: list[int]
    values: list[float]


def read_metrics(home: Path, *, prefix: str = "", name: str = METRICS_JOURNAL) -> dict[str, Series]:
    """The metrics below `home`, a run's or a stage's folder, whose names start with `prefix`."""
    journal = home / name
    if not journal.is_file():
        return {}
    found: dict[str, Series] = {}
    wanted = f'"{prefix}'
    with journal.open(errors="replace") as file:
        for line in file:
            event = _parse(line) if wanted in line else None
            if not isinstance(event, Metrics):
                continue
            for name, value in event.values.items():
                if name.startswith(prefix):
                    series = found.setdefault(name, Series([], []))
                    series.steps.append(event.step)
                    series.values.append(value)
    return found


def last_values(home: Path, *, prefix: str) -> dict[str, float]:
    """The last value of each metric of a run or a stage whose name starts with `prefix`."""
    found = read_metrics(home, prefix=prefix)
    return {name: series.values[-1] for name, series in found.items()}


def metrics_at(home: Path, step: int, *, prefix: str) -> Metrics | None:
    """The last event of a step with metrics whose names start with `prefix`, without others."""
    journal = home / METRICS_JOURNAL
    if not journal.is_file():
        return None
    found, wanted = None, (f'"step":{step},', f'"{prefix}')
    with journal.open(errors="replace") as file:
        for line in file:
            event = _parse(line) if all(text in line for text in wanted) else None
            if isinstance(event, Metrics) and event.step == step:
                values = {name: x for name, x in event.values.items() if name.startswith(prefix)}
                found = event.model_copy(update={"values": values})
    return found

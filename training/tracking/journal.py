"""The journals of a run: events that wait on disk for MLflow, and the metrics among them read back.

Knows files only.
"""

from __future__ import annotations

import itertools
import json
import logging
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.best_effort import append_lines_atomically, best_effort
from training.run_dir.paths import FILES_JOURNAL, METRICS_JOURNAL
from training.tracking.events import EVENT, Event

log = logging.getLogger(__name__)

BATCH = 500
"""Events that are handed over at once."""
LONGEST_END = 20_000
"""Bytes; no `End` has a longer line."""


class Journal:
    """A file with a line for each event, and how many of its bytes were sent to which run.

    One process appends. Several may send: each batch goes out under a lock and leaves the new
    place behind, so that nothing is sent twice.
    """

    def __init__(self, home: Path, name: str = METRICS_JOURNAL, *, batch: int = BATCH) -> None:
        self.batch = batch
        self.path = home / name
        self.unwritten = ""
        """Events that found no room on the disk."""
        self._appending = threading.Lock()
        self._offset = self.path.with_suffix(".sent")
        self._sending = home / f".{self.path.stem}.lock"
        self._sent = _Sent()

    def append(self, event: Event) -> None:
        """Adds an event; what finds no room waits for the next call."""
        with self._appending:
            self.unwritten += event.model_dump_json() + "\n"
            with best_effort(str(self.path)):
                append_lines_atomically(self.path, self.unwritten)
                self.unwritten = ""

    def remove(self) -> None:
        """Removes the file and the note of what was sent."""
        for path in (self.path, self._offset):
            path.unlink(missing_ok=True)

    @property
    def all_sent(self) -> bool:
        """Whether no whole line is left; a torn last one waits for the next event."""
        run_id = self._sent.run_id or self._sent_by_any().run_id
        return not self._unsent(self._sent_to(run_id), 1)

    @property
    def ended(self) -> bool:
        """Whether the last event is the end of the run, or there is none."""
        if not self.path.exists():
            return True
        with self.path.open("rb") as file:
            file.seek(max(0, self._size() - LONGEST_END))
            lines = file.read().splitlines()
        return not lines or lines[-1].startswith(b'{"kind":"end"')

    def send(self, send: Callable[[list[Event]], None], *, run_id: str) -> bool:
        """Hands the next events that this run has not got to `send`; False when there are none."""
        if self._size() == self._sent_to(run_id):
            return False
        with FileLock(self._sending):
            start = self._sent_to(run_id)
            lines = self._unsent(start, self.batch)
            if not lines:
                return False
            send(_whole_events(lines))
            self._sent = _Sent(run_id=run_id, bytes=start + sum(map(len, lines)))
            with best_effort(str(self._offset)):
                storage.write_bytes(str(self._offset), self._sent.model_dump_json().encode())
        return True

    def _unsent(self, start: int, most: int) -> list[bytes]:
        """The first whole lines from a place on."""
        if self._size() == start:
            return []
        with self.path.open("rb") as file:
            file.seek(start)
            lines = (file.readline() for _ in range(most))
            # To the first one that is just being written, whose end would be taken for a line.
            return list(itertools.takewhile(lambda line: line.endswith(b"\n"), lines))

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _sent_to(self, run_id: str) -> int:
        """Bytes that the run has got, from whichever process; none, if it was made since. All are
        sent again when it is not known, which MLflow takes for the same."""
        known = (self._sent, self._sent_by_any())
        sent = max((one.bytes for one in known if one.run_id == run_id), default=0)
        return sent if sent <= self._size() else 0

    def _sent_by_any(self) -> _Sent:
        """What is noted on the disk."""
        try:
            return _Sent.model_validate_json(self._offset.read_bytes())
        except (OSError, ValidationError):
            return _Sent()


class _Sent(FrozenModel):
    """How far a run has got a journal."""

    run_id: str = ""
    bytes: int = 0


def _whole_events(lines: list[bytes]) -> list[Event]:
    """What the lines say; those that a kill or a lost disk left torn are passed over."""
    events = []
    for line in lines:
        try:
            events.append(EVENT.validate_json(line))
        except ValidationError:
            log.warning("a torn line of a journal is not sent: %.80r", line)
    return events


def files_journal(home: Path) -> Journal:
    """The pictures and files of a stage or a run, one by one: a store that takes none of them holds
    up no metrics."""
    return Journal(home, FILES_JOURNAL, batch=1)


@dataclass(frozen=True)
class Series:
    """All values of one metric, in order of writing."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        return self.values[-1]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def largest(self) -> float:
        return max(self.values)


def read_metrics(home: Path, *, prefix: str = "") -> dict[str, Series]:
    """The metrics below `home`, a run's or a stage's folder, whose names start with `prefix`."""
    journal = home / METRICS_JOURNAL
    if not journal.is_file():
        return {}
    found: dict[str, tuple[list[int], list[float]]] = {}
    wanted = f'"{prefix}'
    with journal.open(errors="replace") as file:
        for line in file:
            if not line.startswith('{"kind":"metrics"') or wanted not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:  # torn by a kill or a lost disk, and written on
                continue
            for name, value in event["values"].items():
                if name.startswith(prefix):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(event["step"])
                    values.append(value)
    return {name: Series(tuple(steps), tuple(values)) for name, (steps, values) in found.items()}

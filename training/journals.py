"""The journals of a run: events that wait on disk for MLflow, and the metrics among them read back.

Knows files only.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from datagen import storage
from training.events import EVENT, Event

NAME = "tracking"
JOURNAL = f"{NAME}.jsonl"
BATCH = 500
LONGEST_END = 20_000
"""Bytes; no `End` has a longer line."""


class Journal:
    """A file with a line for each event, and how many of its bytes were sent.

    One process appends. Several may send: each batch goes out under a lock and leaves the new
    place behind, so that nothing is sent twice.
    """

    def __init__(self, home: Path, name: str = NAME) -> None:
        self.path = home / f"{name}.jsonl"
        self._sent = home / f"{name}.sent"
        self._sending = home / f".{name}.lock"
        self._lock = threading.Lock()

    def drop_torn_line(self) -> None:
        """Cuts off what a killed process left of a last line, so that the next event starts a line
        of its own; for whoever appends."""
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)

    def append(self, event: Event) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(event.model_dump_json() + "\n")

    def forget(self) -> None:
        """Removes the file and what is known of it."""
        for path in (self.path, self._sent):
            path.unlink(missing_ok=True)

    @property
    def all_sent(self) -> bool:
        return not self.path.exists() or self._sent_bytes() == self.path.stat().st_size

    @property
    def ended(self) -> bool:
        """Whether the last event is the end of the run, or there is none."""
        if not self.path.exists():
            return True
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - LONGEST_END))
            lines = file.read().splitlines()
        return not lines or lines[-1].startswith(b'{"kind":"end"')

    def send(self, send: Callable[[list[Event]], None]) -> bool:
        """Hands the next unsent events to `send`; False when there are none."""
        if self.all_sent:
            return False
        with FileLock(self._sending):
            start = self._sent_bytes()
            with self.path.open("rb") as file:
                file.seek(start)
                lines = [
                    line for line in (file.readline() for _ in range(BATCH)) if line.endswith(b"\n")
                ]
            if not lines:
                return False
            send([EVENT.validate_json(line) for line in lines])
            storage.write_bytes(str(self._sent), str(start + sum(map(len, lines))).encode())
        return True

    def _sent_bytes(self) -> int:
        return int(self._sent.read_text()) if self._sent.exists() else 0


def side_journal(home: Path, machine: str) -> Journal:
    """What a machine without the first worker adds to a stage's journal."""
    return Journal(home, f"{NAME}-{machine}")


def side_journals(home: Path, machines: Iterable[str] = ()) -> list[Journal]:
    """Those of the given machines and of all that ever wrote one."""
    names = {path.stem for path in home.glob(f"{NAME}-*.jsonl")}
    names |= {side_journal(home, machine).path.stem for machine in machines}
    return [Journal(home, name) for name in sorted(names)]


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
    journal = home / JOURNAL
    if not journal.is_file():
        return {}
    found: dict[str, tuple[list[int], list[float]]] = {}
    wanted = f'"{prefix}'
    with journal.open() as file:
        for line in file:
            if not line.startswith('{"kind":"metrics"') or wanted not in line:
                continue
            if not line.endswith("\n"):
                continue  # torn by a kill
            event = json.loads(line)
            for name, value in event["values"].items():
                if name.startswith(prefix):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(event["step"])
                    values.append(value)
    return {name: Series(tuple(steps), tuple(values)) for name, (steps, values) in found.items()}

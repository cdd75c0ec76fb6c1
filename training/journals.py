"""The journals of a run, read back: the metrics of a stage by name, whatever MLflow has of them.

Reads files only.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

JOURNAL = "tracking.jsonl"


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

"""What a program found out: tables on the screen and in OUT, and the list of what failed.

Text goes to `OUT/NAME.md`, rows also to `OUT/NAME.jsonl`, tracebacks to `OUT/NAME-failures.log`.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SHORTENED = 300
"""Characters of a failure's last line in a table."""


class NotMeasured(Exception):
    """A row has no figure, for a reason that is no fault."""


class Results:
    """The results of one program; new rows are added to those of a run before."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._text = folder / f"{name}.md"
        self._rows = folder / f"{name}.jsonl"
        self._tracebacks = folder / f"{name}-failures.log"
        self.failed: list[str] = []
        self.out_of_memory = False
        """Whether that was why the last attempt failed: an engine is then in no state to go on."""

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self._text.open("a") as file:
            file.write(line + "\n")

    def table(self, title: str, *columns: str) -> None:
        """Starts a table."""
        self.say(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def row(self, *cells: object, **more: Any) -> None:
        """Adds a row to the last table.

        Args:
            more: JSON values that are for the file of rows only.
        """
        texts = [str(cell) for cell in cells]
        self.say(f"| {' | '.join(texts)} |")
        with self._rows.open("a") as file:
            file.write(json.dumps({"cells": texts, **more}) + "\n")

    @contextmanager
    def attempt(self, *cells: object) -> Iterator[None]:
        """The block adds a row that begins with `cells`; when it fails, a row says so, and the
        program goes on."""
        self.out_of_memory = False
        try:
            yield
        except NotMeasured as reason:
            self.row(*cells, f"not measured: {reason}")
        except Exception as error:
            self.out_of_memory = isinstance(error, torch.OutOfMemoryError)
            name = ", ".join(str(cell) for cell in cells)
            self.failed.append(name)
            self.row(*cells, "FAILED", _last_line(error))
            with self._tracebacks.open("a") as file:
                file.write(f"\n===== {name}\n{traceback.format_exc()}")

    def check(self, name: str, work: Callable[[], str]) -> None:
        """A row with what `work` says and how long it took."""
        start = time.monotonic()
        with self.attempt(name):
            said = work()
            self.row(name, "ok", said, f"{time.monotonic() - start:.1f}")

    def exit_code(self) -> int:
        """Says what failed; the exit code of the program."""
        self.say(f"\nFailed: {'; '.join(self.failed)}" if self.failed else "\nNothing failed.")
        return int(bool(self.failed))


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][:SHORTENED]}"

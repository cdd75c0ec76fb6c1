"""The edge between the program and the person: results on stdout, all else on stderr, errors to exit codes.

Knows nothing of datasets or training. Exit codes: 0 done, 1 failed, 2 wrong recipe, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from datagen.errors import FlowmapsrError

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, so that clean-up runs as it does on Ctrl-C."""


class Output:
    """What a verb has to say at its end: one JSON object, or lines for a person."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._text = ""
        self.exit_code = 0

    def done(self, result: Mapping[str, Any], lines: Sequence[str]) -> None:
        """What was made, where, and the next command."""
        self._text = _json_text(result) if self._as_json else "\n".join(lines)

    def failed(self, result: Mapping[str, Any], lines: Sequence[str]) -> None:
        """As `done`, for work that ended with faults: exit code 1."""
        self.done(result, lines)
        self.exit_code = FAILED

    def resolved(self, recipe: Mapping[str, Any]) -> None:
        """The recipe that would be run."""
        import yaml

        text = yaml.safe_dump(dict(recipe), sort_keys=False, width=100, allow_unicode=True)
        self.done(recipe, [text.rstrip()])

    def error(self, message: str, exit_code: int) -> None:
        """A failure: the message on stderr, and with `--json` as the one object on stdout too."""
        print(message, file=sys.stderr, flush=True)
        self._text = _json_text({"error": message}) if self._as_json else ""
        self.exit_code = exit_code

    def flush(self) -> None:
        """Writes what was said to the real stdout."""
        if self._text:
            print(self._text, flush=True)


@contextmanager
def process_edge(*, as_json: bool) -> Iterator[Output]:
    """Runs a verb; every way it can end becomes text and an exit code here, and only here."""
    output = Output(as_json=as_json)
    with _stdout_for_result_only() if as_json else _nothing_changed():
        signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            yield output
        except KeyboardInterrupt as stop:
            code = TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED
            output.error(f"\nStopped; nothing is lost. To continue: {_same_command()}", code)
        except FlowmapsrError as error:
            output.error(f"Error: {error}", getattr(error, "exit_code", FAILED))
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            output.error(_unexpected(error), FAILED)
    output.flush()
    if output.exit_code:
        raise typer.Exit(output.exit_code)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left and numbers to the right."""
    grid = [list(headings), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in grid) for column in range(len(headings))]
    return ["  ".join(_cells(row, widths)).rstrip() for row in grid]


def human_bytes(count: int) -> str:
    """`1.4 MB`: decimal units."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(count: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def command(*words: str) -> str:
    """A command line the user can paste."""
    return shlex.join(["flowmapsr", *words])


def _cells(row: list[str], widths: list[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column == 0 else cell.rjust(width)


def _json_text(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False)


def _same_command() -> str:
    return command(*sys.argv[1:])


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _unexpected(error: Exception) -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="flowmapsr-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"{_same_command()}\n\n{''.join(traceback.format_exception(error))}")
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
    return (
        f"Error: flowmapsr failed in a way it should not ({what}). The full report is in {log.name}; "
        f"please send it with a bug report. What is finished is kept: the same command continues."
    )


@contextmanager
def _nothing_changed() -> Iterator[None]:
    yield


@contextmanager
def _stdout_for_result_only() -> Iterator[None]:
    """Sends what libraries print to stderr, below Python too, so that stdout holds one JSON object."""
    sys.stdout.flush()
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(real_stdout, 1)
        os.close(real_stdout)

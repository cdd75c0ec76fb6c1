"""The edge between program and person: results on stdout, all else on stderr, errors to exit codes.

Knows nothing of datasets or training. Exit codes: 0 done, 1 failed, 2 wrong recipe, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer

from datagen.errors import FlowmapsrError
from pipelines.terminal.signals import Terminated
from pipelines.terminal.text import command

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


@dataclass(frozen=True)
class VerbResult:
    """The same outcome for a program and for a person."""

    result: Mapping[str, Any]
    lines: Sequence[str]
    ok: bool = True


class Output:
    """Holds what a verb has to say until it has ended."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._text = ""
        self.exit_code = 0

    def say(self, result: VerbResult) -> None:
        """The outcome; one that is not ok makes the exit code 1."""
        self._text = _json_text(result.result) if self._as_json else "\n".join(result.lines)
        self.exit_code = 0 if result.ok else FAILED

    def say_recipe(self, recipe: Mapping[str, Any]) -> None:
        """The recipe that would be run."""
        import yaml

        text = yaml.safe_dump(dict(recipe), sort_keys=False, width=100, allow_unicode=True)
        self.say(VerbResult(recipe, [text.rstrip()]))

    def fail(self, message: str, *, exit_code: int) -> None:
        """The message on stderr, and with `--json` as the one object on stdout too."""
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
    with _stdout_for_result_only() if as_json else nullcontext():
        signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            yield output
        except KeyboardInterrupt as stop:
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
            output.fail(f"Stopped; nothing is lost. To continue: {_same_command()}", exit_code=code)
        except FlowmapsrError as error:
            output.fail(str(error), exit_code=getattr(error, "exit_code", FAILED))
        except Exception as error:
            output.fail(_unexpected(error), exit_code=FAILED)
    output.flush()
    if output.exit_code:
        raise typer.Exit(output.exit_code)


def _json_text(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False)


def _same_command() -> str:
    return command(*sys.argv[1:])


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _unexpected(error: Exception) -> str:
    """A short message; the whole story goes to a file that can be sent with a bug report."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="flowmapsr-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"{_same_command()}\n\n{''.join(traceback.format_exception(error))}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return (
        f"flowmapsr failed in a way it should not ({what}). The whole report is in "
        f"{log.name}. What is finished is kept: the same command continues."
    )


@contextmanager
def _stdout_for_result_only() -> Iterator[None]:
    """Sends what libraries print to stderr, below Python too: stdout is to hold one JSON object."""
    sys.stdout.flush()
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(real_stdout, 1)
        os.close(real_stdout)

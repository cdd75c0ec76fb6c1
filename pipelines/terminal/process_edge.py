"""Process boundary: results on stdout, everything else on stderr, errors to exit codes.

0 done, 1 failed, 2 wrong usage or recipe, 130 Ctrl-C, 143 SIGTERM, a closed terminal or another
signal that asks to end (`datagen/io/end_signals.py`).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from datagen.errors import FlowmapsrError
from datagen.io.end_signals import on_end_signal
from pipelines.terminal.doing import log_shown, speaking
from pipelines.terminal.json_stderr import keep_stderr_json
from pipelines.terminal.text import command, yaml_lines
from training.monitoring.json_log import json_wanted, tell

if TYPE_CHECKING:
    from datagen.records import Settings

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


class Terminated(KeyboardInterrupt):
    """A signal that asks to end as an exception, so that clean-up runs as it does on Ctrl-C."""


@dataclass(frozen=True)
class VerbResult:
    """What a command found, for a program and for a person."""

    result: Mapping[str, Any]
    lines: Sequence[str]
    ok: bool = True


class Output:
    """Buffers a command's output until it ends."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.text = ""
        self.exit_code = 0

    def say(self, result: VerbResult) -> None:
        """Sets the result; the exit code is 1 if it is not ok."""
        lines = [_strict_json(result.result)] if self._as_json else result.lines
        self.text = "\n".join(lines)
        self.exit_code = 0 if result.ok else FAILED

    def say_recipe(self, recipe: Settings) -> None:
        """Sets the resolved recipe as the result, as YAML."""
        values = recipe.model_dump(mode="json")
        self.say(VerbResult(values, yaml_lines(values)))

    def fail(
        self, message: str, *, exit_code: int, details: Mapping[str, Any] | None = None
    ) -> None:
        """Prints the message on stderr, and with `--json` as the one object on stdout too, with
        the details."""
        with suppress(OSError):  # the terminal is closed, or nobody reads any more
            tell(message, level="error")
        self.say(VerbResult({"error": message, **(details or {})}, []))
        self.exit_code = exit_code


def _strict_json(result: Mapping[str, Any]) -> str:
    """One line; a number that is not finite, which JSON does not have, is null."""
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except ValueError:
        from pydantic_core import to_json

        finite = to_json(result, inf_nan_mode="null")
        return json.dumps(json.loads(finite), ensure_ascii=False)


@contextmanager
def process_edge(*, as_json: bool) -> Iterator[Output]:
    """Runs a command; every way it can end becomes text and an exit code here, and only here."""
    output = Output(as_json=as_json)
    if json_wanted() and sys.stderr is sys.__stderr__:  # not in a program that has put another one
        keep_stderr_json()
    with _stdout_for_result_only() if as_json else nullcontext(), speaking(), log_shown():
        on_end_signal(_raise_terminated)
        try:
            yield output
        except KeyboardInterrupt as stop:
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
            again = command(*sys.argv[1:])
            output.fail(f"Stopped; nothing is lost. To continue: {again}", exit_code=code)
        except FlowmapsrError as error:
            code = getattr(error, "exit_code", FAILED)
            output.fail(str(error), exit_code=code, details=error.details)
        except Exception as error:
            output.fail(_unexpected(error), exit_code=FAILED)
    if output.text:
        print(output.text, flush=True)
    if output.exit_code:
        raise typer.Exit(output.exit_code)


def _raise_terminated() -> None:
    raise Terminated


def _unexpected(error: Exception) -> str:
    """A short message; the traceback goes to a file for a bug report."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"{error.strerror}: raise the limit (ulimit -n 4096). Finished work is kept: the same "
            "command continues."
        )
    with tempfile.NamedTemporaryFile(
        "w", prefix="flowmapsr-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"{command(*sys.argv[1:])}\n\n{''.join(traceback.format_exception(error))}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return (
        f"Internal error in flowmapsr ({what}). The traceback is in {log.name}. Finished work is "
        "kept: the same command continues."
    )


@contextmanager
def _stdout_for_result_only() -> Iterator[None]:
    """Redirects output of libraries, also of C code, to stderr: stdout holds one JSON object."""
    sys.stdout.flush()
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(real_stdout, 1)
        os.close(real_stdout)

"""The starts of a stage: when, with how many workers, from where, and how the one before ended.

`<stage>/starts.jsonl` has a line for each. Written by the first worker, read by whoever reviews the
run; knows no training.
"""

from __future__ import annotations

import logging
from pathlib import Path
from textwrap import shorten

from pydantic import ValidationError

from datagen.records import FrozenModel, Record, UnreadableRecord, read_record
from training.run_dir.best_effort import append_whole
from training.run_dir.paths import RunPaths, StagePaths
from training.run_dir.records import StageProgress, Workers
from training.run_dir.stacks import stack_files

log = logging.getLogger(__name__)

MAX_REASON = 300
"""Characters; some launchers add advice to an error."""
MOST_CAUSES = 3
KILLED = "killed, or its machine was lost"


class Start(FrozenModel):
    """One start of a stage."""

    time: float
    """Seconds since the epoch."""
    workers: Workers
    step: int
    """The step that it went on from; 0 is the beginning."""
    ended_before: str | None = None
    """Why the start before this one ended; None for the first."""
    passed_over: str = ""
    """Checkpoints that were damaged, so that it went on from the one before."""


class Ended(FrozenModel):
    """`ended.json`: how the last start ended, where its process could still say so."""

    time: float
    reason: str


class Failure(FrozenModel):
    """A line of `<run>/failures.jsonl`: what the launcher saw of a worker that failed."""

    time: float
    rank: int
    died: bool
    """Its process ended without a word; else it raised the error."""
    error: str
    """The last line of what it, or the launcher, said."""


def read_starts(stage: StagePaths) -> list[Start]:
    """All starts of a stage, first to last."""
    return _read_lines(stage.starts, Start)


def read_failures(run: Path) -> list[Failure]:
    """What a launcher saw fail, first to last."""
    return _read_lines(RunPaths(run).failures, Failure)


def how_ended(stage: StagePaths) -> str:
    """What is known of the end of a stage's last start: from its stacks, its launcher or itself."""
    starts = read_starts(stage)
    since = starts[-1].time if starts else 0.0
    stacks = [path for path in stack_files(stage.stacks) if path.stat().st_mtime > since]
    if stacks:
        firsts = [path.read_text().split("\n", 1)[0] for path in stacks]
        return next((line for line in firsts if "no progress for" in line), firsts[0])
    failures = [one for one in read_failures(stage.run) if one.time > since]
    # Workers that lose one who died fail too, and say so louder.
    causes = [one for one in failures if one.died] or failures
    if causes:
        return _causes(causes)
    ended = read_ended(stage)
    return KILLED if ended is None else ended.reason


def _causes(failures: list[Failure]) -> str:
    """What failed where, each error once."""
    ranks: dict[str, list[str]] = {}
    for one in failures:
        ranks.setdefault(one.error, []).append(str(one.rank))
    return "; ".join(
        f"worker{'s' if len(where) > 1 else ''} {', '.join(where)}: {error}"
        for error, where in list(ranks.items())[:MOST_CAUSES]
    )


def append_line(path: Path, record: FrozenModel) -> None:
    """Adds a record to a file of lines, whole or not at all. Raises OSError."""
    append_whole(path, record.model_dump_json() + "\n")


def last_line(error: BaseException) -> str:
    """What an error says, in the one line that mostly says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    # Launchers append a worker's whole traceback, which ends with what went wrong.
    line = lines[-1] if len(lines) > 1 else f"{name}: {lines[0]}"
    return shorten(line, MAX_REASON, placeholder=" ...")


def _read_lines(path: Path, record: type[Record]) -> list[Record]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(record.model_validate_json(line))
        except ValidationError:  # torn by a kill
            continue
    return found


def read_progress(stage: StagePaths) -> StageProgress | None:
    """Where a stage stands, if it has ever said so; a torn file, which training soon writes again,
    is a warning."""
    try:
        return read_record(stage.progress, StageProgress, remedy="taken for missing")
    except UnreadableRecord as torn:
        log.warning("%s", torn)
        return None


def read_ended(stage: StagePaths) -> Ended | None:
    """How a stage's last start ended, if it could say so."""
    path = stage.ended
    try:
        return read_record(path, Ended, remedy="remove it")
    except UnreadableRecord:
        return Ended(time=path.stat().st_mtime, reason=f"not known: {path} is torn")

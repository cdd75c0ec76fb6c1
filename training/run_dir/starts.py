"""The starts of a stage: when, with which workers, from which step, and how the one before ended.

`<stage>/starts.jsonl` has a line for each, by rank 0. Times are in seconds since the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from pydantic import ValidationError

from datagen.io import storage
from datagen.records import FrozenModel, Record, UnreadableRecord, read_record
from training.run_dir.best_effort import append_lines_atomically, best_effort, read_or_warn
from training.run_dir.paths import RunPaths, StagePaths
from training.run_dir.records import StageProgress, StageWeights, WorkerGroup
from training.run_dir.stacks import stack_files, stall_reason

MAX_REASON, MOST_CAUSES = 300, 3
"""Characters of a reason, as some launchers add advice; and errors of one failure."""
KILLED = "killed, or its machine was lost"
FINISHED = "finished"


class Start(FrozenModel):
    """One start of a stage."""

    time: float
    workers: WorkerGroup
    step: int
    """The step it resumed from; 0 is the beginning."""
    ended_before: str | None = None
    """Why the start before this one ended; None for the first."""
    skipped_checkpoints: str = ""
    """Corrupt checkpoints that were skipped, with the reasons."""
    failures: int = 0
    """How many failures of workers the run had before; the clocks of machines may differ."""
    stacks: tuple[str, ...] = ()
    """The stack traces that the stage had before."""
    grew_from: StageWeights | None = None
    """The earlier stage's weights that the stage's first step had; null for others."""

    @property
    def is_restart(self) -> bool:
        """Not the first start, nor one that trains a finished stage further."""
        return self.ended_before not in (None, FINISHED)


class StartSeconds(FrozenModel):
    """A line of `start_seconds.jsonl`: where the time before the first step of a start went."""

    start: int
    """Its number, from 1."""
    seconds: dict[str, float]
    """Of each phase, in order."""


class EndRecord(FrozenModel):
    """`ended.json`: how the last start ended, if its process could record it."""

    time: float
    reason: str


class Failure(FrozenModel):
    """A line of `<run>/failures.jsonl`: a failed worker, as the launcher saw it."""

    time: float
    rank: int
    died: bool
    """Its process ended without an error; else it raised one."""
    error: str
    """In a line: what the worker raised, or how its process ended."""
    number: int = 0
    """Which failure of its command it is part of, from 1; workers that fail together are one."""
    again: bool = False
    """The launcher starts the workers again."""
    details: str = ""
    """Everything that the launcher says of it."""


def record_start(
    stage: StagePaths,
    workers: WorkerGroup,
    step: int,
    skipped_checkpoints: str = "",
    grew_from: StageWeights | None = None,
) -> Start:
    """Records that the stage continues from `step`, without the corrupt checkpoints after it.

    Args:
        grew_from: the weights of an earlier stage that a first step would have now.
    """
    earlier = read_starts(stage)
    if step and earlier:
        grew_from = earlier[-1].grew_from
    ended_before = end_reason(stage) if earlier else None
    # A launcher that can start more workers ends the current ones without an error.
    if ended_before == KILLED and len(workers.hosts) > len(earlier[-1].workers.hosts):
        ended_before = f"{KILLED}, or ended for more workers"
    start = Start(
        time=time.time(),
        workers=workers,
        step=step,
        ended_before=ended_before,
        skipped_checkpoints=skipped_checkpoints,
        failures=len(read_failures(stage.run)),
        stacks=tuple(path.name for path in stack_files(stage.stacks)),
        grew_from=grew_from,
    )
    with best_effort("the list of starts"):
        append_line(stage.starts, start)
    stage.ended.unlink(missing_ok=True)
    return start


def record_seconds(stage: StagePaths, seconds: Mapping[str, float]) -> None:
    """Records how long the phases of the current start took."""
    with best_effort("the seconds of a start"):
        found = StartSeconds(start=len(read_starts(stage)), seconds=dict(seconds))
        append_line(stage.start_seconds, found)


def record_end(stage: StagePaths, reason: str) -> None:
    """Records how the current start ended; the next one reports it."""
    ended = EndRecord(time=time.time(), reason=reason)
    with best_effort("how the start ended"):
        storage.write_bytes(str(stage.ended), ended.model_dump_json().encode())


def read_starts(stage: StagePaths) -> list[Start]:
    """All starts of a stage, first to last."""
    return read_lines(stage.starts, Start)


def read_seconds(stage: StagePaths) -> dict[int, dict[str, float]]:
    """Seconds of the phases of each start that came to its first step, by the start's number."""
    return {one.start: one.seconds for one in read_lines(stage.start_seconds, StartSeconds)}


def restarts(stage: StagePaths) -> list[Start]:
    """The starts of a stage that had begun and was not finished."""
    return [start for start in read_starts(stage) if start.is_restart]


def read_failures(run: Path) -> list[Failure]:
    """Failures of workers, first to last."""
    return read_lines(RunPaths(run).failures, Failure)


def end_reason(stage: StagePaths) -> str:
    """Why a stage's last start ended: from its stack traces, its launcher's or its own record."""
    ended = read_end(stage)
    if ended is not None and ended.reason == FINISHED:
        return FINISHED
    starts = read_starts(stage)
    earlier, failures_before = (starts[-1].stacks, starts[-1].failures) if starts else ((), 0)
    stacks = [path for path in stack_files(stage.stacks) if path.name not in earlier]
    if stacks:
        return stall_reason(stacks)
    failures = read_failures(stage.run)[failures_before:]
    hosts = dict(enumerate(starts[-1].workers.hosts)) if starts else {}
    # Workers that lose the connection to a dead one fail too, with longer messages.
    causes: dict[str, list[str]] = {}
    for one in [one for one in failures if one.died] or failures:
        host = f" on {hosts[one.rank]}" if one.rank in hosts else ""
        causes.setdefault(one.error, []).append(f"{one.rank}{host}")
    if causes:
        return "; ".join(
            f"worker{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: {error}"
            for error, ranks in list(causes.items())[:MOST_CAUSES]
        )
    return KILLED if ended is None else ended.reason


def append_line(path: Path, record: FrozenModel) -> None:
    """Appends a record to a file of lines, completely or not at all, with an OSError."""
    append_lines_atomically(path, record.model_dump_json() + "\n")


def last_line(error: BaseException) -> str:
    """The most informative line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    # Launchers append a worker's whole traceback, which ends with the error.
    line = lines[-1] if len(lines) > 1 else f"{name}: {lines[0]}"
    return shorten(line, MAX_REASON, placeholder=" ...")


def read_lines(path: Path, record: type[Record]) -> list[Record]:
    """The records of a file of lines; a last line without an end was cut short by a kill, and any
    other that cannot be read raises UnreadableRecord: the file would hide what happened."""
    if not path.is_file():
        return []
    *lines, incomplete = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(record.model_validate_json(line))
        except ValidationError as error:
            raise UnreadableRecord(
                f"{path}: line {number} is corrupt or of another version of flowmapsr; remove the "
                "line, or the file if its history is not needed"
            ) from error
    return found


def read_progress(stage: StagePaths) -> StageProgress | None:
    """Last recorded progress of a stage; a corrupt file is ignored, training soon rewrites it."""
    return read_or_warn(stage.progress, StageProgress, remedy="it is ignored")


def read_end(stage: StagePaths) -> EndRecord | None:
    """How a stage's last start ended, if it could record it."""
    path = stage.ended
    try:
        return read_record(path, EndRecord, remedy="remove it")
    except UnreadableRecord:
        return EndRecord(time=path.stat().st_mtime, reason=f"unknown: {path} is corrupt")

"""The starts of a stage: when, with how many workers, from where, and how the one before ended.

`<stage>/starts.jsonl` has a line for each. Written by the first worker, read by whoever reviews the
run; knows no training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from pydantic import ValidationError

from datagen.io import storage
from datagen.records import FrozenModel, Record, UnreadableRecord, read_record
from training.monitoring.watchdog import stack_files
from training.run_dir.best_effort import append_whole, secondary
from training.run_dir.records import StageProgress, Workers
from training.tracking.events import Artifact, Event, Tags

log = logging.getLogger(__name__)

STARTS = "starts.jsonl"
ENDED = "ended.json"
FAILURES = "failures.jsonl"
PROGRESS = "progress.json"
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


class Attempt:
    """The present start of a stage, as its first worker keeps book of it."""

    def __init__(self, run: Path, stage: str, workers: Workers) -> None:
        self.run = run
        self.home = run / "stages" / stage
        self.workers = workers
        self.restarts = 0
        before = read_progress(self.home)
        self._before = before.worker_hours if before else 0.0
        self._since = time.monotonic()

    def begin(self, step: int, *, passed_over: str = "") -> list[Event]:
        """Notes that the stage goes on from `step`, and says so for MLflow.

        Args:
            passed_over: the damaged checkpoints before that step.
        """
        earlier = read_starts(self.home)
        self.restarts = len(earlier)
        start = Start(
            time=time.time(),
            workers=self.workers,
            step=step,
            ended_before=self._ended_before(earlier[-1]) if earlier else None,
            passed_over=passed_over,
        )
        with secondary("the list of starts"):
            append_line(self.home / STARTS, start)
        (self.home / ENDED).unlink(missing_ok=True)
        tags = {"restarts": str(self.restarts)}
        if start.ended_before is not None:
            tags["restarted_after"] = start.ended_before
        if passed_over:
            tags["passed_over"] = passed_over
        listed = [Artifact(path=str(self.home / STARTS))] if (self.home / STARTS).is_file() else []
        return [Tags(values=tags), *listed]

    def _ended_before(self, earlier: Start) -> str:
        reason = how_ended(self.run, self.home)
        # A launcher that has found room for more workers ends the few without a word.
        grew = len(self.workers.hosts) > len(earlier.workers.hosts)
        return f"{reason}, or ended for more workers" if reason == KILLED and grew else reason

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Notes how the block ends, which is how this start does; the next one tells."""
        try:
            yield
        except BaseException as error:
            self._end(last_line(error))
            raise
        finished = (self.home / "done.json").is_file()
        self._end("finished" if finished else "stopped on request, with a checkpoint")

    def _end(self, reason: str) -> None:
        ended = Ended(time=time.time(), reason=reason)
        with secondary("how the start ended"):
            storage.write_bytes(str(self.home / ENDED), ended.model_dump_json().encode())

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together, over all starts of the stage."""
        here = (time.monotonic() - self._since) / 3600
        return self._before + here * len(self.workers.hosts)

    def metrics(self) -> dict[str, float]:
        """What the stage has cost so far, and how often it had to start again."""
        return {self.workers.hours_metric: self.worker_hours, "restarts": float(self.restarts)}


def read_starts(home: Path) -> list[Start]:
    """All starts of a stage, first to last."""
    return _read_lines(home / STARTS, Start)


def read_failures(run: Path) -> list[Failure]:
    """What a launcher saw fail, first to last."""
    return _read_lines(run / FAILURES, Failure)


def how_ended(run: Path, home: Path) -> str:
    """What is known of the end of a stage's last start: from its stacks, its launcher or itself."""
    starts = read_starts(home)
    since = starts[-1].time if starts else 0.0
    stacks = [path for path in stack_files(home) if path.stat().st_mtime > since]
    if stacks:
        firsts = [path.read_text().split("\n", 1)[0] for path in stacks]
        return next((line for line in firsts if "no progress for" in line), firsts[0])
    failures = [one for one in read_failures(run) if one.time > since]
    # Workers that lose one who died fail too, and say so louder.
    causes = [one for one in failures if one.died] or failures
    if causes:
        return _causes(causes)
    ended = read_ended(home)
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


def read_progress(home: Path) -> StageProgress | None:
    """Where a stage stands, if it has ever said so; a torn file, which training soon writes again,
    is a warning."""
    try:
        return read_record(home / PROGRESS, StageProgress, remedy="taken for missing")
    except UnreadableRecord as torn:
        log.warning("%s", torn)
        return None


def read_ended(home: Path) -> Ended | None:
    """How a stage's last start ended, if it could say so."""
    path = home / ENDED
    try:
        return read_record(path, Ended, remedy="remove it")
    except UnreadableRecord:
        return Ended(time=path.stat().st_mtime, reason=f"not known: {path} is torn")

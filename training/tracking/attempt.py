"""Bookkeeping of one start of a stage: notes it on disk and reports it to MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from datagen.io import storage
from training.run_dir.best_effort import secondary
from training.run_dir.paths import StagePaths
from training.run_dir.records import Workers
from training.run_dir.starts import (
    KILLED,
    Ended,
    Start,
    append_line,
    how_ended,
    last_line,
    read_progress,
    read_starts,
)
from training.tracking.events import Artifact, Event, Tags


class Attempt:
    """The present start of a stage, as its first worker keeps book of it."""

    def __init__(self, stage: StagePaths, workers: Workers) -> None:
        self.stage = stage
        self.workers = workers
        self.restarts = 0
        before = read_progress(stage)
        self._before = before.worker_hours if before else 0.0
        self._since = time.monotonic()

    def begin(self, step: int, *, passed_over: str = "") -> list[Event]:
        """Notes that the stage goes on from `step`, and says so for MLflow.

        Args:
            passed_over: the damaged checkpoints before that step.
        """
        earlier = read_starts(self.stage)
        self.restarts = len(earlier)
        start = Start(
            time=time.time(),
            workers=self.workers,
            step=step,
            ended_before=self._ended_before(earlier[-1]) if earlier else None,
            passed_over=passed_over,
        )
        with secondary("the list of starts"):
            append_line(self.stage.starts, start)
        self.stage.ended.unlink(missing_ok=True)
        tags = {"restarts": str(self.restarts)}
        if start.ended_before is not None:
            tags["restarted_after"] = start.ended_before
        if passed_over:
            tags["passed_over"] = passed_over
        listed = [Artifact(path=str(self.stage.starts))] if self.stage.starts.is_file() else []
        return [Tags(values=tags), *listed]

    def _ended_before(self, earlier: Start) -> str:
        reason = how_ended(self.stage)
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
        finished = self.stage.done.is_file()
        self._end("finished" if finished else "stopped on request, with a checkpoint")

    def _end(self, reason: str) -> None:
        ended = Ended(time=time.time(), reason=reason)
        with secondary("how the start ended"):
            storage.write_bytes(str(self.stage.ended), ended.model_dump_json().encode())

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together, over all starts of the stage."""
        here = (time.monotonic() - self._since) / 3600
        return self._before + here * len(self.workers.hosts)

    def metrics(self) -> dict[str, float]:
        """What the stage has cost so far, and how often it had to start again."""
        return {self.workers.hours_metric: self.worker_hours, "restarts": float(self.restarts)}

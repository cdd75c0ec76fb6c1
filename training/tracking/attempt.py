"""Records the starts of a stage and their ends, on disk and in MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from datagen.io import storage
from training.run_dir.best_effort import best_effort
from training.run_dir.paths import StagePaths
from training.run_dir.records import WorkerGroup
from training.run_dir.starts import (
    KILLED,
    EndRecord,
    Start,
    append_line,
    end_reason,
    last_line,
    read_progress,
    read_starts,
)
from training.tracking.events import Artifact, Event, Tags


class Attempt:
    """Record of the current start, on rank 0."""

    def __init__(self, stage: StagePaths, workers: WorkerGroup) -> None:
        self.stage = stage
        self.workers = workers
        self.restarts = 0
        before = read_progress(stage)
        self._before = before.worker_hours if before else 0.0
        self._since = time.monotonic()

    def begin(self, step: int, *, skipped_checkpoints: str = "") -> list[Event]:
        """Records that the stage continues from `step`; returns the events for MLflow.

        Args:
            skipped_checkpoints: the corrupt checkpoints after that step.
        """
        earlier = read_starts(self.stage)
        self.restarts = len(earlier)
        start = Start(
            time=time.time(),
            workers=self.workers,
            step=step,
            ended_before=self._ended_before(earlier[-1]) if earlier else None,
            skipped_checkpoints=skipped_checkpoints,
        )
        with best_effort("the list of starts"):
            append_line(self.stage.starts, start)
        self.stage.ended.unlink(missing_ok=True)
        tags = {"restarts": str(self.restarts)}
        if start.ended_before is not None:
            tags["restarted_after"] = start.ended_before
        if skipped_checkpoints:
            tags["skipped_checkpoints"] = skipped_checkpoints
        listed = [Artifact(path=str(self.stage.starts))] if self.stage.starts.is_file() else []
        return [Tags(values=tags), *listed]

    def _ended_before(self, earlier: Start) -> str:
        reason = end_reason(self.stage)
        # A launcher that can start more workers ends the current ones without an error.
        grew = len(self.workers.hosts) > len(earlier.workers.hosts)
        return f"{reason}, or ended for more workers" if reason == KILLED and grew else reason

    @contextmanager
    def end_recorded(self) -> Iterator[None]:
        """Records how the block ends; the next start reports it."""
        try:
            yield
        except BaseException as error:
            self._end(last_line(error))
            raise
        finished = self.stage.done.is_file()
        self._end("finished" if finished else "stopped on request, with a checkpoint")

    def _end(self, reason: str) -> None:
        ended = EndRecord(time=time.time(), reason=reason)
        with best_effort("how the start ended"):
            storage.write_bytes(str(self.stage.ended), ended.model_dump_json().encode())

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together, over all starts of the stage."""
        here = (time.monotonic() - self._since) / 3600
        return self._before + here * len(self.workers.hosts)

    def metrics(self) -> dict[str, float]:
        """Cost of the stage so far and its restarts."""
        return {self.workers.hours_metric: self.worker_hours, "restarts": float(self.restarts)}

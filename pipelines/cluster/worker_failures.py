"""Writes what Ray sees of failing workers into the run's folder, where the next start reads it.

Runs where Ray controls the workers; knows no training.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
from ray.train import UserCallback

from training.run_dir.starts import FAILURES, Failure, append_line, last_line

log = logging.getLogger(__name__)

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError)


class FailureLog(UserCallback):
    """Appends a line to `failures.jsonl` for every worker that failed."""

    def __init__(self, run: Path) -> None:
        self.path = run / FAILURES

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            failure = Failure(
                time=time.time(),
                rank=rank,
                died=isinstance(error, DEATHS),
                error=last_line(error),
            )
            try:
                append_line(self.path, failure)
            except OSError as problem:  # the workers are started again all the same
                log.warning("%s cannot be written (%s): %s", self.path, problem, failure.error)

"""Records in the run folder which workers failed, and ends a run that cannot succeed.

Runs in Ray's controller of the worker group. The next start reads the records.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
from ray.train import UserCallback

from datagen.errors import FlowmapsrError
from training.run_dir.paths import RunPaths
from training.run_dir.starts import Failure, append_line, last_line

log = logging.getLogger(__name__)

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError)


class FailureLog(UserCallback):
    """Appends a line to `failures.jsonl` for every worker that failed.

    Raises:
        FlowmapsrError: an error meant for the user, which a restart would only repeat. Ray restarts
            a group whose workers failed, but not one whose callback did.
    """

    def __init__(self, run: Path) -> None:
        self.path = RunPaths(run).failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = [error for _, error in sorted(worker_exceptions.items())]
        for rank, error in sorted(worker_exceptions.items()):
            self._append(rank, error)
        for error in errors:
            cause = getattr(error, "_base_exc", error)  # Ray gives no other way to what was raised
            if isinstance(cause, FlowmapsrError):
                raise cause

    def _append(self, rank: int, error: Exception) -> None:
        failure = Failure(
            time=time.time(),
            rank=rank,
            died=isinstance(error, DEATHS),
            error=last_line(error),
        )
        try:
            append_line(self.path, failure)
        except OSError as problem:  # must not keep Ray from restarting the workers
            log.warning("%s cannot be written (%s): %s", self.path, problem, failure.error)

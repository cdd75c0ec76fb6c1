"""Saves a stage's checkpoints while it trains, removes old ones, and restores the newest valid one.

Every worker creates a `Checkpoints` and calls its methods at the same steps.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.checkpoints.folders import CheckpointFolders, StepFolder
from training.checkpoints.reader import Damaged, SavedState, open_checkpoint, read_commit
from training.checkpoints.records import CheckpointOrigin, Commit, Share, TrainerState
from training.checkpoints.stop_time import report_first_checkpoint
from training.checkpoints.writer import Writer, Writing

T = TypeVar("T")
Changed = Callable[[int, str, dict[int, str]], None]
"""Takes the step and the address of a new checkpoint, and why each step's is kept now."""
log = logging.getLogger(__name__)

_NUMBERS = re.compile(r"\d+")
"""What differs between two checkpoints with the same problem: steps, sizes."""
LAST_WAIT = 60.0
"""Seconds that the first worker waits for the other workers' shares when it closes."""


class Trained(Protocol):
    """Networks and optimizers whose state can be saved and restored."""

    def snapshot(self) -> Share:
        """This worker's share of the state; every worker calls it at the same step."""

    def restore(self, saved: SavedState) -> None:
        """Restores the snapshots of all workers; every worker calls it."""


class Checkpoints:
    """All checkpoints in a local folder or `s3://` prefix that every worker can access."""

    def __init__(
        self,
        uri: str,
        *,
        keep: int,
        keep_every_steps: int | None = None,
        changed: Changed | None = None,
    ) -> None:
        """
        Args:
            keep: how many of the last checkpoints are kept.
            keep_every_steps: also those whose step this divides.
            changed: called in the first worker's writing thread after each commit.
        """
        self.folders = CheckpointFolders(uri, keep, keep_every_steps)
        self._changed = changed
        self.newest: Commit | None = None
        """The last complete checkpoint; on the first worker only."""
        self.problem = ""
        """Why the last one could not be written; empty if it was."""
        self.skipped_checkpoints = ""
        """The damaged ones that `resume` skipped; on the first worker only."""
        self.failed = 0
        """How many could not be written."""
        self._told = ""
        """The kind of problem that was warned of; empty after a checkpoint was written."""
        self._seconds = self._began = 0.0
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        attempt = self._from_first(lambda: secrets.token_hex(4))
        self._writer = Writer(self.rank, self.world_size, attempt)
        self._writing: Writing | None = None

    def save(self, trained: Trained, state: TrainerState) -> str:
        """Copies the state and writes it in the background, after the previous one; returns why
        that one could not be written, or nothing. Training may continue."""
        problem = self.drain()
        self._began = time.monotonic()
        folder, share = self.folders.of_step(state.step), trained.snapshot()
        self._writing = Writing(self._writer, folder, share, state, self._committed)
        return problem

    def drain(self) -> str:
        """Waits until the current checkpoint is written; returns the problem, or nothing: the same
        on all workers."""
        writing, self._writing = self._writing, None
        if writing is None:
            return ""
        problem = self._from_all(writing.wait_for_share())
        commit_problem = writing.wait_for_commit(timeout=0 if problem else None)
        problem = problem or self._from_all(commit_problem)
        if not problem:
            self._tell("", writing.step)
            self.problem = ""
            return ""
        self.problem = f"the checkpoint of step {writing.step} could not be written ({problem})"
        self.failed += 1
        self._tell(_NUMBERS.sub("", problem), writing.step)
        if self.rank == 0:
            self._remove_failed(writing)
        dist.barrier()  # no worker may start the next one before that
        return self.problem

    def _tell(self, kind: str, step: int) -> None:
        """Warns once of a kind of problem, not at each checkpoint that has it, and says its end."""
        before, self._told = self._told, kind
        if self.rank > 0 or kind == before:
            return
        if kind:
            log.warning("%s; training goes on, and says so once", self.problem)
        else:
            log.info("checkpoints can be written again: that of step %d is", step)

    def metrics(self) -> dict[str, float]:
        """On the first worker: the step that a restart would resume from, the number of failures
        since the start, and the seconds that the last checkpoint took."""
        cost = {"perf/checkpoint_seconds": self._seconds} if self._seconds else {}
        newest, failed = float(self._last_step()), float(self.failed)
        return {"checkpoints/newest_step": newest, "checkpoints/failed": failed} | cost

    def newest_step(self) -> int:
        """The step that a restart would resume from, 0 for the start of the stage; the same on all
        workers, each of which must call it."""
        return self._from_first(self._last_step)

    def finish(self) -> None:
        """Waits for the last checkpoint of the run.

        Raises:
            FlowmapsrError: it could not be written.
        """
        problem = self.drain()
        if problem:
            newest = self.newest_step()
            raise FlowmapsrError(
                f"{problem}; run the same command again to resume from "
                + (f"step {newest}" if newest else "the start of the stage")
            )

    def close(self) -> None:
        """Ends the writing when this worker, perhaps alone, fails: waits for its own share and, on
        the first worker, up to `LAST_WAIT` seconds for the others'."""
        writing, self._writing = self._writing, None
        problem = "" if writing is None else writing.wait_for_commit(LAST_WAIT)
        if writing is not None and problem:
            log.warning("the checkpoint of step %d was not written (%s)", writing.step, problem)

    def resume(self, trained: Trained, origin: CheckpointOrigin) -> TrainerState | None:
        """Restores the newest valid checkpoint; returns None if there is none.

        Damaged ones are skipped with a warning and then removed: otherwise they would be the newest
        again.

        Raises:
            FlowmapsrError: all are damaged, or the newest belongs to another stage or recipe.
        """
        committed = self._from_first(self.folders.remove_leftovers)
        damages: list[str] = []
        for number, folder in enumerate(reversed(committed)):
            try:
                commit = self._restore(trained, folder.uri, origin)
            except Damaged as damage:
                damages.append(str(damage))
                continue
            self.newest = commit
            if self.rank == 0 and damages:
                self._skip(committed[-number:], damages, commit.state.step)
            return commit.state
        if damages:
            raise FlowmapsrError(
                f"no checkpoint in {self.folders.uri} is valid: {'; '.join(damages)}. Restore "
                "the files, or remove that folder to start the stage over"
            )
        return None

    def restore_step(self, trained: Trained, step: int, origin: CheckpointOrigin) -> Commit:
        """Restores the checkpoint of a step and returns it, with the arguments of `resume`.

        Raises:
            Damaged: it is missing or damaged, and nothing was restored.
        """
        return self._restore(trained, self.folders.of_step(step), origin)

    def _restore(self, trained: Trained, uri: str, origin: CheckpointOrigin) -> Commit:
        """Verifies a checkpoint, then restores it; raises `Damaged` on all workers or none."""
        commit = self._from_first(partial(read_commit, uri))
        _check_origin(uri, commit.state.origin, origin)
        with open_checkpoint(uri, commit) as saved:
            found = self._from_all(saved.faults(index=self.rank, of=self.world_size))
            if found:
                raise Damaged(found)
            trained.restore(saved)
        return commit

    def _skip(self, folders: list[StepFolder], damages: list[str], step: int) -> None:
        self.skipped_checkpoints = "; ".join(damages)
        what = self.skipped_checkpoints
        log.warning("%s: skipped and removed; the stage resumes from step %d", what, step)
        for folder in folders:
            folder.remove()

    def _committed(self, commit: Commit) -> None:
        """Called in the writer's thread: records the new checkpoint and removes older ones."""
        self.newest, is_first = commit, not self._seconds
        self._seconds = time.monotonic() - self._began
        if is_first:
            report_first_checkpoint(commit, seconds=self._seconds)
        try:
            kept = self.folders.tidy(commit)
            if self._changed is not None:
                self._changed(commit.state.step, self.folders.of_step(commit.state.step), kept)
        except FlowmapsrError as error:  # the new checkpoint is complete
            log.warning("older checkpoints could not be removed yet: %s", error)

    def _remove_failed(self, writing: Writing) -> None:
        """Frees disk space at once. Files on S3 are left until the next commit: S3 may be down, and
        training would wait for it."""
        if storage.is_remote(writing.folder):
            return
        try:
            self.folders.remove_leftovers()
            storage.delete_empty_folder(writing.folder)
        except FlowmapsrError as error:
            log.warning("its files could not be removed yet: %s", error)

    def _last_step(self) -> int:
        return 0 if self.newest is None else self.newest.state.step

    def _from_first(self, call: Callable[[], T]) -> T:
        """Calls it on the first worker; every worker returns its result or raises its error."""
        message: list[Any] = [None, None]
        if self.rank == 0:
            try:
                message[0] = call()
            except FlowmapsrError as error:
                message[1] = error
        dist.broadcast_object_list(message)
        if message[1] is not None:
            raise message[1]
        return cast(T, message[0])

    def _from_all(self, text: str) -> str:
        """The texts of all workers that have one, on every worker."""
        texts: list[str] = [""] * self.world_size
        dist.all_gather_object(texts, text)
        return "; ".join(f"worker {rank}: {one}" for rank, one in enumerate(texts) if one)


def _check_origin(uri: str, saved: CheckpointOrigin, wanted: CheckpointOrigin) -> None:
    """Raises FlowmapsrError if the checkpoint belongs to another run."""
    fields = CheckpointOrigin.model_fields
    differing = [name for name in fields if getattr(saved, name) != getattr(wanted, name)]
    if differing:
        raise FlowmapsrError(
            f"the checkpoint {uri} belongs to another run (different: {', '.join(differing)}): "
            "choose another location in `checkpoints`, or remove that folder"
        )

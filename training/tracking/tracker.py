"""Sends metrics, pictures and files of a run to MLflow through a journal on disk.

An event is appended to `tracking.jsonl` or `files.jsonl`, and a thread sends the lines and saves
its offset. So a slow or lost tracking server never stops or slows training: unsent lines wait in
the journal for the next start of the same command.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from training.run_dir.paths import StagePaths
from training.tracking.events import Artifact, Begin, End, Event, Metrics, Picture, Status
from training.tracking.journal import Journal, files_journal
from training.tracking.mlflow_client import MAX_TAG, MlflowRun, clear_run_ids, tracking_uri

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
STALL_SECONDS = 6.0
"""How long to wait for the server when the watchdog is about to end this process."""


def reset_tracking(run: Path) -> None:
    """Makes the next start of a run folder create a new MLflow run; no stage may have started."""
    clear_run_ids(run)
    for journal in (Journal(run), files_journal(run)):
        journal.remove()


class Tracker:
    """Journal and sender of one MLflow run: the parent of a training run (stage None) or of one
    stage."""

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        stage: str | None = None,
        begins: bool = True,
    ) -> None:
        """
        Args:
            begins: the run starts now; False only sends what is unsent.
        """
        home = run if stage is None else StagePaths(run, stage).root
        home.mkdir(parents=True, exist_ok=True)
        self._journal, self._files = Journal(home), files_journal(home)
        self._journals = [self._journal, self._files]
        self._mlflow_run = MlflowRun(run, experiment=experiment, stage=stage)
        self._closing = threading.Event()
        if begins:
            self.write(Begin())
        self._threads = [
            self._sender("metrics", self._journal),
            self._sender("files", self._files),
        ]

    def write(self, event: Event) -> None:
        """Appends an event; returns at once whatever the state of the server.

        On a full disk it waits for the next call.
        """
        journal = self._files if isinstance(event, Picture | Artifact) else self._journal
        journal.append(event)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.write(Metrics(step=step, time_ms=int(time.time() * 1000), values=values))

    def close(self, status: Status, *, reason: str | None = None, wait: float = 60.0) -> bool:
        """Ends the run and waits up to `wait` seconds for the journal to be sent.

        Returns:
            Whether everything was sent; what was not stays in the journal for the next start.
        """
        self.write(End(status=status, reason=None if reason is None else reason[:MAX_TAG]))
        return self.drain(wait=wait)

    def drain(self, *, wait: float = 60.0) -> bool:
        """Like `close`, for a run whose end is already in the journal."""
        self._closing.set()
        deadline = time.monotonic() + wait
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if self._journal.unwritten:
            log.warning("the last metrics are lost: %s cannot be written", self._journal.path)
            return False
        sent = all(journal.all_sent for journal in self._journals)
        if not sent:
            log.warning(
                "MLflow at %s did not accept everything; the rest waits in %s and is sent when the "
                "same command runs again",
                tracking_uri(),
                ", ".join(str(journal.path) for journal in self._journals if not journal.all_sent),
            )
        return sent

    def _sender(self, what: str, journal: Journal) -> threading.Thread:
        thread = threading.Thread(
            target=self._send_all, args=(what, journal), name=f"mlflow-{what}", daemon=True
        )
        thread.start()
        return thread

    def _send_all(self, what: str, journal: Journal) -> None:
        """Sends until closed; warns once per kind of error and says when MLflow is back."""
        warned: set[tuple[type[Exception], str | None]] = set()
        sent_since = 0
        while True:
            closing = self._closing.is_set()
            pause = 0.2
            try:
                sent = journal.send(self._mlflow_run.send, run_id=self._mlflow_run.run_id())
                sent_since += sent
                if warned and journal.all_sent:
                    log.info("MLflow is back, %d events of %s sent", sent_since, what)
                    warned.clear()
                if closing and not sent:
                    return
            # Whatever MLflow raises must end neither this thread nor training.
            except Exception as error:
                if not warned:
                    sent_since = 0
                kind = (type(error), getattr(error, "error_code", None))
                if kind not in warned:
                    log.warning(
                        "MLflow at %s takes no %s (%s); training continues and they are kept",
                        tracking_uri(),
                        what,
                        error,
                    )
                warned.add(kind)
                pause = RETRY_SECONDS
                if closing:
                    return
            self._closing.wait(timeout=pause)


def fully_sent(home: Path) -> bool:
    """Whether a run has ended, or never started, and all its events are sent."""
    journals = [Journal(home), files_journal(home)]
    return journals[0].ended and all(journal.all_sent for journal in journals)


def close_orphaned_run(
    run: Path,
    *,
    experiment: str,
    stage: str,
    status: Status,
    reason: str | None,
    wait: float,
) -> None:
    """Ends the MLflow run of a stage whose process died before it could, and sends what is unsent.

    Does nothing to a run that ended and whose journal is sent.
    """
    home = StagePaths(run, stage).root
    journal = Journal(home)
    if fully_sent(home):
        return
    tracker = Tracker(run, experiment=experiment, stage=stage, begins=False)
    if journal.ended:
        tracker.drain(wait=wait)
    else:
        tracker.close(status, reason=reason, wait=wait)

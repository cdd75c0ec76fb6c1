"""Sends metrics, pictures and files of a run to MLflow through a journal on disk.

An event is appended to `tracking.jsonl` or `files.jsonl`, and a thread sends the lines and saves
its offset. So a slow or lost tracking server never stops or slows training: unsent lines wait in
the journal for the next start of the same command. Where MLflow is not installed, all lines do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from training.run_dir.paths import RunPaths, StagePaths
from training.tracking.events import (
    Artifact,
    Begin,
    End,
    Event,
    KeptCheckpoints,
    Metrics,
    Model,
    Picture,
    Status,
    Tags,
)
from training.tracking.journal import Journal, journals
from training.tracking.store.address import mlflow_installed
from training.tracking.store.mlflow_run import MlflowRun
from training.tracking.store.send import MAX_TAG
from training.tracking.unsent import OUTAGES

log = logging.getLogger(__name__)

SEND_SECONDS = 5.0
"""How long events wait for others to be sent with: a request costs more than what is in it."""
RETRY_SECONDS = 5.0
MODELS = "models"
PATIENCE_SECONDS = 10.0
"""How long the end of a command may wait without a word."""
STALL_SECONDS = 6.0
"""How long to wait for the server when the watchdog is about to end this process, or when the last
try failed."""


def reset_tracking(run: Path) -> None:
    """Makes the next start of a run folder create a new MLflow run; no stage may have started."""
    RunPaths(run).mlflow.unlink(missing_ok=True)
    for journal in journals(run):
        journal.remove()


def supersede(stage: StagePaths, kept: StagePaths, *, why: str) -> None:
    """Before a stage's folder is moved to `kept`: its MLflow run stays that of the moved folder,
    and says why another one has its place."""
    done = stage.finished_record() is not None
    journal = journals(stage.root).metrics
    journal.append(Tags(values={"superseded": why}))
    journal.append(End(status="FINISHED" if done else "KILLED"))
    MlflowRun(stage.run, experiment="", stage=stage.name, label=None).rename_stage(kept.name)


def fully_sent(home: Path) -> bool:
    """Whether a run has ended, or never started, and all its events are sent."""
    all_of_them = journals(home)
    return all_of_them.metrics.ended and all(journal.all_sent for journal in all_of_them)


@cache
def _say_that_all_waits(run: Path) -> None:
    """Once for each run, not again for its stages and their ends."""
    log.warning(
        "MLflow is not installed: training goes on, and metrics and pictures wait in %s; the same "
        "command with mlflow installed sends all of them",
        run,
    )


class Tracker:
    """Journals and senders of one MLflow run: that of a stage, or the parent of all (None)."""

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        stage: str | None = None,
        label: str | None = None,
        begins: bool = True,
    ) -> None:
        """
        Args:
            label: what a stage's run is called, after the name of its parent; null its own name.
            begins: the run starts now; False only sends what is unsent.
        """
        home = run if stage is None else StagePaths(run, stage).root
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._journals = journals(home)
        self._mlflow_run = MlflowRun(run, experiment=experiment, stage=stage, label=label)
        self._closing = threading.Event()
        self._away: set[str] = set()
        """What could not be sent at the last try."""
        if begins:
            self.write(Begin())
        self._sends = mlflow_installed()
        if not self._sends:
            _say_that_all_waits(run)
        self._threads = {
            each[0]: threading.Thread(target=self._send_all, args=each, name="mlflow", daemon=True)
            for each in (
                ("metrics", (self._journals.curves, self._journals.metrics)),
                ("files", (self._journals.pictures, self._journals.files)),
                (MODELS, (self._journals.models,)),
            )
            if self._sends
        }
        for thread in self._threads.values():
            thread.start()

    @property
    def is_away(self) -> bool:
        """Whether MLflow took nothing, or not all, at the last try."""
        return bool(self._away)

    def write(self, *events: Event) -> None:
        """Appends events, whatever the state of the server; on a full disk they wait for the next
        call."""
        for event in events:
            self._journal_of(event).append(event)

    def _journal_of(self, event: Event) -> Journal:
        match event:
            case Picture() | Artifact():
                return self._journals.files
            case Model() | KeptCheckpoints():
                return self._journals.models
        return self._journals.metrics

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.write(Metrics(step=step, time_ms=int(time.time() * 1000), values=values))

    def close(
        self,
        status: Status | None,
        *,
        reason: str | None = None,
        wait: float = 60,
        models: bool = False,
    ) -> bool:
        """Ends the run and waits up to `wait` seconds for the journals to be sent.

        Args:
            status: None for a run whose end is already in the journal.
            models: also for that of the models, whose files may be large; else the thread that
                sends them goes on while this process trains the next stage.

        Returns:
            Whether everything was sent; what was not stays in the journals for the next start.
        """
        if status is not None:
            self.write(End(status=status, reason=reason and reason[:MAX_TAG]))
        self._closing.set()
        # A server that accepts connections and is silent would cost this at the end of each stage.
        deadline = time.monotonic() + (min(wait, STALL_SECONDS) if self.is_away else wait)
        for what, thread in self._threads.items():
            if what != MODELS:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if models and self._threads:
            self._wait_for_models(max(0.0, deadline - time.monotonic()))
        for what, thread in self._threads.items():
            if not thread.is_alive():
                OUTAGES.forget(self._home, what)
        if self._journals.metrics.unwritten:
            lost = self._journals.metrics.path
            log.warning("the last metrics are lost: %s cannot be written", lost)
            return False
        waited_for = [one for one in self._journals if models or one is not self._journals.models]
        return all(journal.all_sent for journal in waited_for)

    def _wait_for_models(self, seconds: float) -> None:
        thread = self._threads[MODELS]
        thread.join(timeout=min(seconds, PATIENCE_SECONDS))
        if thread.is_alive() and seconds > PATIENCE_SECONDS:
            message = "sending models to MLflow, for up to %.0f minutes; Ctrl-C leaves them"
            log.warning(message, seconds / 60)
            thread.join(timeout=seconds - PATIENCE_SECONDS)

    def _send_all(self, what: str, in_order: Sequence[Journal]) -> None:
        """Sends until closed; tells when MLflow is away and when it is back.

        A journal is sent once those before it are: what the launcher writes at the end of a run
        replaces what its workers wrote.
        """
        failing, events = False, 0
        while True:
            closing = self._closing.is_set()
            try:
                sent = 0
                for journal in in_order:
                    sent += journal.send(self._mlflow_run.send, run_id=self._mlflow_run.run_id())
                    if not journal.all_sent:
                        break
                events += sent
                self._away.discard(what)
                is_all = all(journal.all_sent for journal in in_order)
                if failing and is_all:
                    OUTAGES.ended(self._home, what, events)
                    failing = False
                if closing and not sent:
                    return
                pause = SEND_SECONDS if is_all else 0.0
            # Whatever MLflow raises must end neither this thread nor training.
            except Exception as error:
                events = events if failing else 0
                self._away.add(what)
                if not all(journal.all_sent for journal in in_order):
                    failing = True
                    OUTAGES.failed(self._home, what, error)
                pause = RETRY_SECONDS
                if closing:
                    return
            self._closing.wait(timeout=pause)


def close_orphaned_run(
    stage: StagePaths,
    *,
    experiment: str,
    label: str | None = None,
    status: Status,
    reason: str | None,
    wait: float,
) -> None:
    """Ends the MLflow run of a stage whose process died before it could, and sends what is unsent;
    leaves one alone that ended and is fully sent."""
    if fully_sent(stage.root):
        return
    has_ended = journals(stage.root).metrics.ended
    tracker = Tracker(stage.run, experiment=experiment, stage=stage.name, label=label, begins=False)
    tracker.close(None if has_ended else status, reason=reason, wait=wait, models=True)

"""Metrics, pictures and files of a run to MLflow, through a journal on disk that is the truth.

Writing an event appends a line to `tracking.jsonl`; a thread sends the lines to MLflow and
remembers how far it came. A tracking server that is slow or gone therefore never stops or slows
training: what could not be sent waits in the journal and is sent by the next start of the same
command. Knows nothing of training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from training.events import Begin, End, Event, Metrics, Status
from training.journals import Journal, side_journals
from training.mlflow_runs import MAX_TAG, MlflowRun, forget_names, tracking_uri

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
STALL_SECONDS = 6.0
"""How long a server may take for the end of a run whose process is about to be ended."""


def forget_run(run: Path) -> None:
    """Lets the next start of a run folder have a new MLflow run; its stages must not have begun."""
    forget_names(run)
    Journal(run).forget()


class Tracker:
    """Journal and sender of one MLflow run: the parent of a training run (stage None) or of one
    stage."""

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        stage: str | None = None,
        machines: Sequence[str] = (),
        begins: bool = True,
    ) -> None:
        """
        Args:
            machines: their side journals are sent too.
            begins: the run is at work now; False only sends what is left of it.
        """
        home = run if stage is None else run / "stages" / stage
        home.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(home)
        self._journals = [self._journal, *side_journals(home, machines)]
        self._mlflow_run = MlflowRun(run, experiment=experiment, stage=stage)
        self._closing = threading.Event()
        self._step = 0
        if begins:
            self.write(Begin())
        self._thread = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Appends an event; returns at once whatever the state of the server.

        On a full disk it waits for the next call.
        """
        self._journal.append(event)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._step = step
        self.write(Metrics(step=step, time_ms=int(time.time() * 1000), values=values))

    def metrics_now(self, values: dict[str, float]) -> None:
        """Metrics that belong to a time, not to a step: they stand at the last one reported."""
        self.metrics(self._step, values)

    def close(self, status: Status, *, reason: str | None = None, wait: float = 60.0) -> bool:
        """Ends the run and waits up to `wait` seconds for the journal to be sent.

        Returns:
            Whether everything was sent; what was not stays in the journal for the next start.
        """
        self.write(End(status=status, reason=None if reason is None else reason[:MAX_TAG]))
        return self.drain(wait=wait)

    def drain(self, *, wait: float = 60.0) -> bool:
        """`close` of a run whose end is in the journal already."""
        self._closing.set()
        self._thread.join(timeout=wait)
        if self._journal.unwritten:
            log.warning("the last metrics are lost: %s cannot be written", self._journal.path)
            return False
        sent = all(journal.all_sent for journal in self._journals)
        if not sent:
            log.warning(
                "MLflow at %s did not take all metrics; they wait in %s and are sent when "
                "the same command "
                "runs again",
                tracking_uri(),
                self._journal.path,
            )
        return sent

    def _send_all(self) -> None:
        warned = False
        while True:
            closing = self._closing.is_set()
            try:
                sent = [journal.send(self._mlflow_run.send) for journal in self._journals]
                if closing and not any(sent):
                    return
                pause = 0.2
            # The edge of this thread: whatever MLflow raises must not end tracking, let alone
            # training.
            except Exception as error:
                if not warned:
                    log.warning(
                        "MLflow at %s does not answer (%s); training goes on and metrics are kept",
                        tracking_uri(),
                        error,
                    )
                warned, pause = True, RETRY_SECONDS
                if closing:
                    return
            self._closing.wait(timeout=pause)


def end_for_the_dead(
    run: Path,
    *,
    experiment: str,
    stage: str,
    status: Status,
    reason: str | None,
    wait: float,
) -> None:
    """Ends the MLflow run of a stage whose process died without doing so, and sends what it left.

    Does nothing to a run that ended and whose journal is sent.
    """
    home = run / "stages" / stage
    journal = Journal(home)
    if journal.ended and all(one.all_sent for one in [journal, *side_journals(home)]):
        return
    tracker = Tracker(run, experiment=experiment, stage=stage, begins=False)
    if journal.ended:
        tracker.drain(wait=wait)
    else:
        tracker.close(status, reason=reason, wait=wait)

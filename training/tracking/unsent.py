"""What MLflow has not got yet: said when it is away and when it is back, and counted for the end of
a command.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from datagen.errors import first_line
from datagen.io.redaction import redacted
from training.run_dir.best_effort import is_full_disk
from training.run_dir.further import tracked_folders
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import journals
from training.tracking.store.address import mlflow_installed, tracking_uri

log = logging.getLogger(__name__)

MAX_REASON = 200
"""Characters: servers answer with whole pages."""

Kind = tuple[type[BaseException], str | None]
Sender = tuple[Path, str]
"""The folder of a run or a stage, and what is sent of it: metrics or files."""


class Outages:
    """Says once for each kind of error that MLflow is away, and that it is back.

    Metrics and files of several runs fail together when a server is down: the first that fails says
    it for all, and so does the first that is sent again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[Kind, set[Sender]] = {}

    def failed(self, home: Path, what: str, error: Exception) -> None:
        """Metrics or files that wait in a folder could not be sent."""
        if is_full_disk(error):
            # Ours, not MLflow's. The journals are on it too, and tell it where it costs something.
            log.debug("%s wait in %s, whose disk is full", what, home)
            return
        kind = (type(_root(error)), getattr(error, "error_code", None))
        with self._lock:
            is_new = kind not in self._failing
            self._failing.setdefault(kind, set()).add((home, what))
        if is_new:
            message = "MLflow at %s takes no %s (%s): training continues, and they wait in %s"
            log.warning(message, redacted(tracking_uri()), what, error_reason(error), home)

    def ended(self, home: Path, what: str, events: int) -> None:
        """They are sent again, with so many events that had waited."""
        with self._lock:
            kinds = [kind for kind, failing in self._failing.items() if (home, what) in failing]
            for kind in kinds:
                del self._failing[kind]
        if kinds:  # a warning, as commands show nothing below it
            log.warning("MLflow is back: %d events of %s sent", events, what)

    def forget(self, home: Path, what: str) -> None:
        """They are not sent any more; what only they have failed with is said again."""
        with self._lock:
            left = {kind: failing - {(home, what)} for kind, failing in self._failing.items()}
            self._failing = {kind: failing for kind, failing in left.items() if failing}


OUTAGES = Outages()
"""Of this process."""


def _root(error: BaseException) -> BaseException:
    """What an error began with: MLflow wraps all that a connection can raise in one kind."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def error_reason(error: Exception) -> str:
    """What an error of MLflow began with, in one line without secrets of addresses."""
    line = getattr(_root(error), "strerror", None) or redacted(first_line(error))
    return shorten(line.rpartition("(Caused by ")[2], MAX_REASON, placeholder=" ...")


def unsent_events(recipe: TrainingRecipe) -> dict[str, int]:
    """How many events of a training and of each of its stages are not in MLflow yet, by the folder
    where they wait; empty where all are."""
    homes = tracked_folders(recipe)
    counts = {str(home): sum(one.unsent for one in journals(home)) for home in homes}
    return {home: count for home, count in counts.items() if count}


def unsent_lines(unsent: Mapping[str, int], *, again: str) -> list[str]:
    """The last line of a command: what is not sent, and how to send it (`again`), if anything."""
    if not unsent:
        return []
    waiting = ", ".join(f"{count} events in {home}" for home, count in unsent.items())
    server = f"MLflow at {redacted(tracking_uri())}" if mlflow_installed() else "MLflow"
    return [f"Not sent to {server} yet: {waiting}. To send them: {again}"]

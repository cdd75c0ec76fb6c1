"""Logs what a benchmark measured as a run of MLflow's, in an experiment of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from datagen.io.redaction import redacted
from datagen.records import flatten
from training.tracking.events import Event, Metrics, Params, Tags
from training.tracking.store.address import mlflow_installed, tracking_uri
from training.tracking.store.mlflow_run import log_run
from training.tracking.unsent import error_reason

EXPERIMENT = "flowmapsr-benchmarks"

log = logging.getLogger(__name__)


def log_benchmark(
    name: str,
    settings: Mapping[str, Any],
    values: Mapping[str, float],
    *,
    more: Sequence[Event] = (),
    experiment: str = EXPERIMENT,
    results: str | None = None,
) -> str | None:
    """Where the run is, as `log_run` tells it; None, with a warning, if it was not logged.

    Args:
        more: tags, datasets and files, which must be on a disk.
        results: a digest of them: where the experiment has a run of it, there is no other one.
    """
    if not mlflow_installed():
        log.warning("MLflow is not installed: what was measured is not logged")
        return None
    events: list[Event] = [
        Params(values=flatten(settings)),
        Tags(values={"role": "benchmark"}),
        Metrics(step=0, time_ms=int(time.time() * 1000), values=dict(values)),
        *more,
    ]
    try:
        return log_run(events, experiment=experiment, name=name, content=results)
    # Whatever MLflow raises, what was measured is printed.
    except Exception as error:
        message = "MLflow at %s rejects what was measured (%s): it is not logged"
        log.warning(message, redacted(tracking_uri()), error_reason(error))
        return None

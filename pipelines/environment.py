"""Settles how the libraries behave by their environment variables, before any of them is imported.

Sets only what the user left open: no telemetry, no look-ups over the network, quiet consoles.
"""

from __future__ import annotations

import logging
import os

from datagen.errors import FlowmapsrError

log = logging.getLogger(__name__)

QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Needed by workers on other machines too."""

EMBEDDED = {
    # Prefect's own server inside the process: slow disks and cold starts need more than its 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
}

PATIENCE = {
    # A server that goes away in the middle is waited for 2 + 4 s at each call, and there are three
    # calls at a flow's end; Prefect's own 5 retries would hold a finished build for 224 s.
    "PREFECT_CLIENT_MAX_RETRIES": "2",
    "PREFECT_API_REQUEST_TIMEOUT": "15",
}
"""For commands at a terminal. A run in a Prefect worker keeps Prefect's own longer patience."""


def prepare_environment() -> None:
    """Fills in `QUIET`, `EMBEDDED` and `PATIENCE` where the user has set nothing."""
    for name, value in {**QUIET, **EMBEDDED, **PATIENCE}.items():
        os.environ.setdefault(name, value)


def leave_run_logs_to_prefect() -> None:
    """Keeps logs of flow and task runs off the terminal, where the command reports for itself.

    They still go to Prefect's pages. Under a Prefect worker, which shows them, this is not called.
    A server that is gone is reported in one line by `prefect_guard`, not for every lost message.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    for name in ("prefect.events.clients", "prefect._internal.concurrency"):
        # A level would not outlive Prefect's own set-up of logging; a filter does.
        logging.getLogger(name).addFilter(lambda record: False)
    logging.raiseExceptions = False  # Prefect prints its lost messages only if this is set


def default_tracking_uri(output: str, *, worker: bool = False) -> None:
    """Puts the database of runs into the output where no MLflow server is named and the working
    folder, its usual place, is no good: on a cluster, whose nodes have one each, and in a Prefect
    `worker`, whose folder vanishes."""
    if os.environ.get("MLFLOW_TRACKING_URI") or not (worker or os.environ.get("RAY_ADDRESS")):
        return
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{output}/mlflow.db"
    log.warning("MLFLOW_TRACKING_URI is not set: runs are tracked in %s/mlflow.db", output)


def require_cluster() -> None:
    """Raises FlowmapsrError when no Ray cluster is named."""
    if not os.environ.get("RAY_ADDRESS"):
        raise FlowmapsrError(
            "--cluster: RAY_ADDRESS names no Ray cluster; set it to the head node's address, such "
            "as 10.0.0.1:6379, or leave --cluster out to train on this machine"
        )

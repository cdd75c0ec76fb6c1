"""Sets library environment variables before anything is imported, unless the user has set them.

No telemetry, no network look-ups, quiet consoles.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile

from datagen.io.open_files import raise_limit
from datagen.io.redaction import split_user
from training.tracking.store.address import tracking_uri

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
    # A lost server costs 2 + 4 s at each call, and there are three calls at a flow's end; Prefect's
    # own 5 retries would delay the end of a build by 224 s.
    "PREFECT_CLIENT_MAX_RETRIES": "2",
    "PREFECT_API_REQUEST_TIMEOUT": "15",
}
"""For commands at a terminal. A run in a Prefect worker keeps Prefect's own longer waits."""


def prepare_environment() -> None:
    """Fills in `QUIET`, `EMBEDDED` and `PATIENCE` where the user has set nothing, and takes
    passwords out of addresses, which are logged and shown."""
    for name, value in {**QUIET, **EMBEDDED, **PATIENCE}.items():
        os.environ.setdefault(name, value)
    raise_limit()
    if not os.access(os.path.expanduser("~"), os.W_OK):
        _do_without_home()
    if os.environ.get("RAY_ADDRESS"):
        # Ray asks so many times, each second, a server that is none of Ray's main ones.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "8")
    tracking_uri()
    address, user, password = split_user(os.environ.get("PREFECT_API_URL", ""))
    if user:
        os.environ["PREFECT_API_URL"] = address
        os.environ["PREFECT_API_AUTH_STRING"] = f"{user}:{password}"


def _do_without_home() -> None:
    """Keeps elsewhere what libraries would write into a home folder that cannot be written.

    Prefect's database is worth a question: `check_surroundings` asks for its place.
    """
    own = os.path.join(tempfile.gettempdir(), f"flowmapsr-{os.getuid()}")
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(own, "matplotlib"))
    if not (os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))


def leave_run_logs_to_prefect() -> None:
    """Keeps logs of flow and task runs off the terminal, where the command reports for itself.

    They still go to Prefect's pages. Not for a Prefect worker, which shows them. A lost server is
    reported in one line by `guard`, not for every lost message.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    lost = ("Unable to connect to", "Service %r failed")  # how the messages begin
    for name in ("prefect.events.clients", "prefect._internal.concurrency"):
        # Prefect's own set-up of logging would replace a level; it keeps a filter.
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(lost))


def default_tracking_uri(folder: str, *, worker: bool = False) -> None:
    """Tracks runs in `folder` if no MLflow server is named and the working folder is unsuitable;
    not in a bucket, where no database can be.

    On a cluster each node has its own working folder, and that of a Prefect `worker` is deleted.
    """
    if "://" in folder or os.environ.get("MLFLOW_TRACKING_URI"):
        return
    if not (worker or os.environ.get("RAY_ADDRESS")):
        return
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    log.warning("MLFLOW_TRACKING_URI is not set: runs are tracked in %s/mlflow.db", folder)


def temporary_folder() -> str:
    """Where Ray keeps logs and sockets of the clusters that it starts, in the folder `ray`."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()


def how_busy() -> str:
    """Said where a server did not start in time: most often the machine is overloaded."""
    return f"this machine has {os.cpu_count()} cores and a load of {os.getloadavg()[0]:.1f}"

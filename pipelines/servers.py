"""Asks the servers that the environment names whether they are there, before libraries are loaded.

All at the same time, so that a dead one is named in seconds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from datagen.errors import NoServerError
from datagen.io.probe import ask_grpc, ask_http, asked, silence
from datagen.io.redaction import redacted
from training.tracking.store import is_server

log = logging.getLogger(__name__)

SECONDS = 7.0
RAY, PREFECT, MLFLOW = "RAY_ADDRESS", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"


class _Server(NamedTuple):
    what: str
    ask: Callable[[str], Future[None] | None]
    """None for what is no address."""
    fix: str


def _ask_ray(address: str) -> Future[None] | None:
    # `auto` and `local` are looked for on this machine. With TLS only Ray itself can ask.
    if address in ("auto", "local") or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return None
    return asked(ask_grpc, address.removeprefix("ray://"), seconds=SECONDS)


def _ask_prefect(url: str) -> Future[None] | None:
    return asked(ask_http, f"{url.rstrip('/')}/health", seconds=SECONDS)


def _ask_mlflow(uri: str) -> Future[None] | None:
    return asked(ask_http, f"{uri.rstrip('/')}/health", seconds=SECONDS) if is_server(uri) else None


SERVERS = {
    RAY: _Server(
        "no Ray cluster answers",
        _ask_ray,
        "start it (`ray start --head`), correct the variable, or unset it to work on this machine "
        "alone",
    ),
    PREFECT: _Server(
        "no Prefect server answers",
        _ask_prefect,
        "start it (`prefect server start`), correct the variable, or unset it to work without one",
    ),
    MLFLOW: _Server(
        "no MLflow server answers",
        _ask_mlflow,
        "start it (`mlflow server`) or correct the variable",
    ),
}
"""By the variable that names the address."""


def check_servers(*needed: str, tracked: bool = True) -> None:
    """Asks servers and waits for their answers, as `ask_servers` says."""
    ask_servers(*needed, tracked=tracked)()


def ask_servers(*needed: str, tracked: bool = True) -> Callable[[], None]:
    """Asks the servers that these variables name, where they are set; they may answer while
    libraries are loaded. What is returned waits for the answers.

    Args:
        tracked: warns of MLflow's too, without which such work goes on.

    Raises:
        NoServerError: one does not answer; names its variable, its address and what to do.
    """
    wanted = (*needed, MLFLOW) if tracked else needed
    addresses = {name: os.environ[name] for name in wanted if os.environ.get(name)}
    answers = {name: SERVERS[name].ask(address) for name, address in addresses.items()}
    end = time.monotonic() + SECONDS

    def check() -> None:
        dead = {
            name: said
            for name, answer in answers.items()
            if (said := _said(name, addresses[name], answer, end))
        }
        if MLFLOW in dead:
            log.warning("%s. The work goes on without it", dead.pop(MLFLOW))
        if dead:
            raise NoServerError("\n".join(dead.values()))

    return check


def require_answer(name: str, address: str) -> None:
    """Checks one server at an address; raises as `ask_servers` says."""
    answer = SERVERS[name].ask(address)
    if said := _said(name, address, answer, time.monotonic() + SECONDS):
        raise NoServerError(said)


def _said(name: str, address: str, answer: Future[None] | None, end: float) -> str | None:
    """What is wrong and what to do; None for a server that answers."""
    left = max(0.0, end - time.monotonic())
    reason = None if answer is None else silence(answer, seconds=left)
    if reason is None:
        return None
    server = SERVERS[name]
    return f"{server.what} at {name}={redacted(address)} ({reason}); {server.fix}"

"""Asks the servers that the environment names whether they are there and take its passwords, before
libraries are loaded.

All at the same time, so that a dead one is named in seconds.
"""

from __future__ import annotations

import logging
import os
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datagen.errors import FlowmapsrError, NoServerError
from datagen.io.probe import RefusedError, ask_grpc, ask_http, asked, silence
from datagen.io.redaction import redacted
from training.tracking.store.address import is_server

log = logging.getLogger(__name__)

SECONDS = 7.0
RAY, PREFECT, MLFLOW = "RAY_ADDRESS", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"
FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""Of a driver to its cluster."""


class _Server(NamedTuple):
    name: str
    ask: Callable[[str], Future[None] | None]
    """None for what is no address."""
    fix: str
    login: str
    """What to correct where it refuses."""


def _ask_ray(address: str) -> Future[None] | None:
    # `auto` and `local` are looked for on this machine. With TLS only Ray itself can ask.
    if address in ("auto", "local") or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return None
    ask = partial(ask_grpc, method=FIRST_CALL, token=_ray_token())
    return asked(ask, address.removeprefix("ray://"), seconds=SECONDS)


def _ray_token() -> str:
    """That which Ray would send."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    kept = path.read_text().strip() if path.is_file() else ""
    return os.environ.get("RAY_AUTH_TOKEN") or kept


def _ask_prefect(url: str) -> Future[None] | None:
    login = _login("PREFECT_API_KEY", os.environ.get("PREFECT_API_AUTH_STRING"))
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return _ask_http(url, "/admin/version", login, elsewhere=home / "profiles.toml")


def _ask_mlflow(uri: str) -> Future[None] | None:
    if not is_server(uri):
        return None
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{one}") for one in ("USERNAME", "PASSWORD"))
    login = _login("MLFLOW_TRACKING_TOKEN", f"{user}:{password}" if user else None)
    kept = Path("~/.mlflow/credentials").expanduser()
    return _ask_http(uri, "/api/2.0/mlflow/users/current", login, elsewhere=kept)


def _login(token: str, user: str | None) -> Mapping[str, str]:
    """Headers with the token that a variable holds, or with `user:password`."""
    if value := os.environ.get(token):
        return {"Authorization": f"Bearer {value}"}
    return {"Authorization": f"Basic {b64encode(user.encode()).decode()}"} if user else {}


def _ask_http(
    url: str, path: str, login: Mapping[str, str], *, elsewhere: Path
) -> Future[None] | None:
    """Asks for a page that needs the password; for any answer where that may be in a file, which
    the library reads."""
    known = login if login or not elsewhere.is_file() else None
    return asked(partial(ask_http, login=known), f"{url.rstrip('/')}{path}", seconds=SECONDS)


SERVERS = {
    RAY: _Server(
        "Ray cluster",
        _ask_ray,
        "start it (`ray start --head`), correct the variable, or unset it to work on this machine "
        "alone",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the token of its nodes",
    ),
    PREFECT: _Server(
        "Prefect server",
        _ask_prefect,
        "start it (`prefect server start`), correct the variable, or unset it to work without one",
        "correct PREFECT_API_AUTH_STRING, which is user:password",
    ),
    MLFLOW: _Server(
        "MLflow server",
        _ask_mlflow,
        "start it (`mlflow server`) or correct the variable",
        "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; the server lets in only "
        "the names of its --allowed-hosts",
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
        NoServerError: one does not answer, or refuses the password; names its variable, its address
            and what to do.
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
    server, where = SERVERS[name], f"{name}={redacted(address)}"
    left = max(0.0, end - time.monotonic())
    try:
        reason = None if answer is None else silence(answer, seconds=left)
    except RefusedError as refusal:
        return f"the {server.name} at {where} refuses this command ({refusal}); {server.login}"
    return reason and f"no {server.name} answers at {where} ({reason}); {server.fix}"


def require_cluster_address(cluster: bool) -> None:
    """Where `--cluster` is given: raises `FlowmapsrError` where no address of one is."""
    if cluster and not os.environ.get("RAY_ADDRESS"):
        raise FlowmapsrError(
            "--cluster: RAY_ADDRESS is not set; set it to the address of the head node, such "
            "as 10.0.0.1:6379, or leave --cluster out to work on this machine"
        )

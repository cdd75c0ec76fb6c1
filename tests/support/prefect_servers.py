"""A real Prefect server and a real worker as processes, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.processes import kill_tree

SECONDS = 240


def prefect(*words: str, env: dict[str, str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Starts a `prefect` command in a new session."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
        )


class Server:
    """A running `prefect server start`, called by its REST interface."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.env = {
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_UI_API_URL": self.url,
            "PREFECT_HOME": str(folder / "prefect"),
        }
        words = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
        self.process = prefect(*words, env=self.env, log=folder / "server.log", cwd=folder)
        eventually(self._healthy)

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=60).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        answer = httpx.post(self.url + path, json=body, timeout=60)
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # its database is busy: try again
            time.sleep(1.0)
            answer = httpx.post(self.url + path, json=body, timeout=60)
        return answer.raise_for_status().json()

    def start_run(self, deployment: str) -> str:
        run = self.post(f"/deployments/{deployment}/create_flow_run", {})
        return str(run["id"])

    def state(self, run: str) -> str:
        return str(self.get(f"/flow_runs/{run}")["state_name"])

    def runs(self, deployment: str, *states: str) -> list[dict[str, Any]]:
        """Runs of a deployment in these states, first the one that was due first."""
        body = {
            "deployments": {"id": {"any_": [deployment]}},
            "flow_runs": {"state": {"name": {"any_": states}}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found = self.post("/flow_runs/filter", body)
        assert isinstance(found, list)
        return found

    def _healthy(self) -> bool:
        assert self.process.poll() is None
        try:
            return httpx.get(self.url + "/health").is_success
        except httpx.HTTPError:
            return False


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        kill_tree(server.process)


@contextmanager
def running_worker(
    server: Server, pool: str, *, env: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in an empty folder, with the program installed and nothing else."""
    empty = folder / "worker"
    empty.mkdir()
    words = ("worker", "start", "--pool", pool)
    worker = prefect(*words, env={**server.env, **env}, log=folder / "worker.log", cwd=empty)
    try:
        yield worker
    finally:
        kill_tree(worker)


def artifacts(server: str, prefix: str) -> dict[str, dict[str, Any]]:
    """The artifacts on the Prefect server whose keys begin so, by key."""
    query = {"artifacts": {"key": {"like_": prefix}}}
    found = httpx.post(f"{server}/artifacts/filter", json=query, timeout=60).raise_for_status()
    return {item["key"]: item for item in found.json()}


def last_run(server: str, name: str) -> dict[str, Any]:
    """The newest flow run of that name, to which it has added what it did."""
    query = {"flow_runs": {"name": {"like_": f"{name}: "}}, "sort": "START_TIME_DESC", "limit": 1}
    (run,) = httpx.post(f"{server}/flow_runs/filter", json=query, timeout=60).json()
    return dict(run)


def log_lines(server: str, run: str, *, wanted: str) -> list[str]:
    """The log of a flow run, which comes a few seconds late, once it has the `wanted` words."""
    query = {"logs": {"flow_run_id": {"any_": [run]}}}
    lines: list[str] = []

    def complete() -> bool:
        found = httpx.post(f"{server}/logs/filter", json=query, timeout=60).json()
        lines[:] = [line["message"] for line in found]
        return any(wanted in line for line in lines)

    eventually(complete)
    return lines

"""Nodes and actors of Ray clusters as processes that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray._private.services import GCS_SERVER_EXECUTABLE

from infra.local_stack.folder import is_free
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.processes import Process

START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block")
READY = "runtime started"
"""In the output of `ray start` once its node is ready."""


def head_words(address: str) -> tuple[str, ...]:
    """The arguments of `ray start` for a new cluster at `address`."""
    port = address.rpartition(":")[2]
    return ("--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1")


def start_node(*words: str, log: Path) -> subprocess.Popen[bytes]:
    """A node started by `ray start`, ready when this returns."""
    for _ in range(5):  # the port of a killed cluster may be taken for some seconds
        with log.open("wb") as output:
            node = subprocess.Popen(
                [*START, "--object-store-memory=100000000", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if _is_ready(node, log):
            return node
        time.sleep(2)
    raise RuntimeError(log.read_text())


def _is_ready(node: subprocess.Popen[bytes], log: Path) -> bool:
    """Waits until the node is ready or has ended."""
    eventually(lambda: node.poll() is not None or READY in log.read_text(), seconds=60)
    return node.poll() is None


@contextmanager
def main_server(token: str, *, folder: Path) -> Iterator[str]:
    """The address of Ray's main server alone, which takes this token."""
    port = free_port()
    words = {
        "gcs_server_port": port,
        "node-ip-address": "127.0.0.1",
        "log_dir": folder,
        "session-dir": folder,
        "session-name": "session",
        "node-id": "0" * 56,
        "ray-commit": "none",
        "config_list": "e30=",  # {}
        "metrics-agent-port": "0",
    }
    with (folder / "log").open("wb") as output:
        server = subprocess.Popen(
            [GCS_SERVER_EXECUTABLE, *(f"--{name}={value}" for name, value in words.items())],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: not is_free(port), server)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def ray_actors(kind: str, *nodes: Process) -> list[psutil.Process]:
    """Actors whose title has the kind, such as `RayTrainWorker`.

    They are those of the nodes, or of the cluster that this process has started.
    """
    found = []
    for parent in [node.pid for node in nodes] or [os.getpid()]:
        try:
            children = psutil.Process(parent).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        found += [process for process in children if kind in _title(process)]
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # ended meanwhile
        return ""

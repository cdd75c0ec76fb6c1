"""Shows an MLflow database: runs MLflow's own server, which only this machine can reach."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from datagen.errors import FlowmapsrError
from pipelines.environment import how_busy
from pipelines.terminal.children import end_children_with_this_process
from pipelines.terminal.doing import doing, says_nothing
from pipelines.terminal.process_edge import Terminated

HOST = "127.0.0.1"
START_SECONDS = 120.0


def serve_page(store: str, *, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves a store until Ctrl-C, and leaves no process behind.

    Args:
        port: 0 takes a free one.
        on_ready: called with the address once it answers.

    Raises:
        FlowmapsrError: the port is taken, the server ends by itself, or is silent twice.
    """
    address = f"http://{HOST}:{_bindable(port)}"
    doing("starting MLflow's page, which takes some seconds")
    end_children_with_this_process()
    try:
        for again in ("once more", "not again"):
            with _server(store, address) as (server, log):
                if _answers(address, server):
                    on_ready(address)
                    with says_nothing():
                        server.wait()
                if server.poll() is not None:
                    raise FlowmapsrError(f"MLflow's server has ended: {_last_line(log)}")
            late = f"MLflow's server does not answer in {START_SECONDS:.0f} s, and {how_busy()}"
            print(f"{late}: it is started {again}", file=sys.stderr)
    except Terminated:
        raise
    except KeyboardInterrupt:
        return
    raise FlowmapsrError(f"{late}; run the same command again when other work has ended")


@contextmanager
def _server(store: str, address: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """MLflow's server for the length of the block, and what it says."""
    words = ["server", "--host", HOST, "--port", address.rpartition(":")[2], "--workers", "1"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            # The store may have a password, which all users would see in the list of processes.
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": store,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, with all that it starts
        )
        try:
            yield server, log
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _bindable(port: int) -> int:
    """The port, or a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise FlowmapsrError(f"port {port} cannot be used: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Waits for an answer; False if the server ends, or is silent for too long."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        health = f"{address}/health"
        with suppress(OSError), urllib.request.urlopen(health, timeout=5):  # nosec B310
            return True
        time.sleep(0.1)
    return False


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"

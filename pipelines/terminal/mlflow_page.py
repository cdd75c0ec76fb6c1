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
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from datagen.errors import FlowmapsrError
from pipelines.terminal.children import end_children_with_this_process
from pipelines.terminal.process_edge import Terminated

HOST = "127.0.0.1"
START_SECONDS = 120.0


def serve_page(store: str, *, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves a store until Ctrl-C, and leaves no process behind.

    Args:
        port: 0 takes a free one.
        on_ready: called with the address once it answers.

    Raises:
        FlowmapsrError: the port is taken, or the server ends by itself.
    """
    port = _bindable(port)
    words = ["server", "--host", HOST, "--port", str(port), "--workers", "1"]
    end_children_with_this_process()
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
            address = f"http://{HOST}:{port}"
            print("Starting MLflow's page, which takes some seconds ...", file=sys.stderr)
            if _answers(address, server):
                on_ready(address)
                server.wait()
            raise FlowmapsrError(f"MLflow's server has ended: {_last_line(log)}")
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated):
                raise
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
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
        time.sleep(0.1)
    return False


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"

"""MLflow's server as a child: nothing of it outlives the command, whatever ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from pipelines.terminal import mlflow_page
from pipelines.terminal.mlflow_page import serve_page
from tests.support.eventually import eventually

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("child", "w").write(str(child.pid))
if "broken" in os.environ["MLFLOW_BACKEND_STORE_URI"]:
    sys.exit("no such store")
if "slow" in os.environ["MLFLOW_BACKEND_STORE_URI"]:
    import time
    time.sleep(600)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
"""In place of MLflow's, which takes seconds; it starts a process of its own, as that does."""

COMMAND = """
import typer
from pipelines.terminal.mlflow_page import serve_page
from pipelines.terminal.process_edge import process_edge
def review():
    with process_edge(as_json=False):
        serve_page("sqlite:///a.db", port=0, on_ready=lambda address: print(address, flush=True))
typer.run(review)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "health").touch()
    (tmp_path / "mlflow.py").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def is_running(folder: Path) -> bool:
    pid = (folder / "child").read_text()
    stat = Path("/proc", pid, "stat")
    return stat.exists() and ") Z " not in stat.read_text()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_whatever_ends_the_command_ends_the_server(
    folder: Path, number: signal.Signals, code: int
) -> None:
    command = subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None and command.stdout.readline().startswith("http://127.0.0.1:")
    assert is_running(folder)
    command.send_signal(number)
    assert command.wait(timeout=30) == code
    command.stdout.close()
    eventually(lambda: not is_running(folder), seconds=10)


def test_a_server_that_ends_by_itself_is_reported(folder: Path) -> None:
    with pytest.raises(FlowmapsrError, match="server has ended: no such store"):
        serve_page("sqlite:///broken.db", port=0, on_ready=print)
    eventually(lambda: not is_running(folder), seconds=10)


def test_a_server_that_does_not_answer_is_started_once_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_page, "START_SECONDS", 1.0)
    with pytest.raises(FlowmapsrError, match="does not answer in 1 s, and this machine has"):
        serve_page("sqlite:///slow.db", port=0, on_ready=print)
    assert capsys.readouterr().err.count("it is started once more") == 1
    eventually(lambda: not is_running(folder), seconds=10)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(FlowmapsrError, match=f"port {port} cannot be used: Address already"):
            serve_page("sqlite:///a.db", port=port, on_ready=print)

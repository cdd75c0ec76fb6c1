"""A real MLflow server that is killed in the middle of a run and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from training import tracking
from training.events import Tags
from training.tracking import RunNames, Tracker

POINTS = 30


@contextmanager
def _server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, *store],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(300)
def test_a_server_killed_during_a_run_gets_every_metric_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.5)
    run = tmp_path / "run"

    def write(first: int) -> None:
        for step in range(first, first + POINTS):
            tracker.metrics(step, {"loss/total": 1.0 / (step + 1), "optim/gradient_norm": 1.0})
            time.sleep(0.02)

    with _server(tmp_path, port):
        tracker = Tracker(run, experiment="tests", stage="warmup")
        write(0)
        while not (run / "stages" / "warmup" / "tracking.sent").exists():
            time.sleep(0.05)
        write(POINTS)  # killed at once, most likely while some of these are on their way
    tracker.write(Tags(values={"told": "while the server was gone"}))
    write(2 * POINTS)
    with _server(tmp_path, port):
        write(3 * POINTS)
        assert tracker.close("FINISHED", wait=60)
        names = RunNames.model_validate_json((run / "mlflow.json").read_bytes())
        client = MlflowClient(uri)
        child = client.get_run(names.stages["warmup"])
        assert child.data.tags["told"] == "while the server was gone"
        assert child.info.status == "FINISHED"
        for name in ("loss/total", "optim/gradient_norm"):
            history = client.get_metric_history(child.info.run_id, name)
            assert [point.step for point in history] == list(range(4 * POINTS))
            times = [point.timestamp for point in history]
            assert times == sorted(times)
        assert len(client.search_runs([child.info.experiment_id])) == 2

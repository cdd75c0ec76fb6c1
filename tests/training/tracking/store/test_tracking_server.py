"""A real MLflow server that is killed in the middle of a run and comes back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from tests.support.mlflow_server import mlflow_server
from tests.support.ports import free_port
from training.tracking import tracker as tracker_module
from training.tracking.events import Tags
from training.tracking.tracker import Tracker

POINTS = 30


@pytest.mark.timeout(300)
def test_a_server_killed_during_a_run_gets_every_metric_once_and_in_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(tracker_module, "RETRY_SECONDS", 0.5)
    run = tmp_path / "run"

    def write(first: int) -> None:
        for step in range(first, first + POINTS):
            tracker.metrics(step, {"loss/total": 1.0 / (step + 1), "optim/gradient_norm": 1.0})
            time.sleep(0.02)

    with mlflow_server(tmp_path, port):
        tracker = Tracker(run, experiment="tests", stage="warmup")
        write(0)
        eventually((run / "stages" / "warmup" / "tracking.sent").exists)
        write(POINTS)  # killed at once, most likely while some of these are being sent
    tracker.write(Tags(values={"note": "while the server was down"}))
    write(2 * POINTS)
    with mlflow_server(tmp_path, port):
        write(3 * POINTS)
        assert tracker.close("FINISHED", wait=60)
        names = mlflow_names(run)
        client = MlflowClient(uri)
        child = client.get_run(names.stages["warmup"])
        assert child.data.tags["note"] == "while the server was down"
        assert child.info.status == "FINISHED"
        for name in ("loss/total", "optim/gradient_norm"):
            history = client.get_metric_history(child.info.run_id, name)
            assert [point.step for point in history] == list(range(4 * POINTS))
            times = [point.timestamp for point in history]
            assert times == sorted(times)
        assert len(client.search_runs([child.info.experiment_id])) == 2
    said = [record.getMessage() for record in caplog.records]
    assert "MLflow at" in said[0] and "MLflow is back: " in said[-1], said
    assert capfd.readouterr().out == ""  # which belongs to --json

"""A store of MLflow that is lost or full: training goes on, and what was written arrives later."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from datagen.io import storage
from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from tests.support.small_disk import DiskMaker
from training.run_dir import best_effort
from training.tracking import tracker as tracker_module
from training.tracking.events import Artifact, Event, Params, Picture, Tags
from training.tracking.store.address import CREDENTIALS
from training.tracking.store.mlflow_run import MlflowRun
from training.tracking.tracker import Tracker


def test_an_unreachable_store_stops_nothing_and_gets_everything_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    tracker = Tracker(run, experiment="tests", stage="warmup")
    for step in range(5):
        tracker.metrics(step, {"loss/total": float(step)})
    assert not tracker.close("FINISHED", wait=30)
    assert "training continues" in caplog.text and str(run) in caplog.text

    (tmp_path / "store").mkdir()
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Tracker(run, experiment="tests", stage="warmup").close("FINISHED")
    names = mlflow_names(run)
    history = MlflowClient(uri).get_metric_history(names.stages["warmup"], "loss/total")
    assert [(point.step, point.value) for point in history] == [(s, float(s)) for s in range(5)]


def test_what_does_not_fit_on_a_full_disk_is_written_later(
    store: MlflowClient,
    small_disk: DiskMaker,
    filled: Callable[[Path], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(best_effort, "_WARNED", set())
    run = small_disk(1 << 20) / "run"
    tracker = Tracker(run, experiment="tests", stage="warmup")
    tracker.metrics(0, {"loss/total": 0.0})
    with filled(run.parent):
        for step in range(1, 200):  # more than fits the last page
            tracker.metrics(step, {"loss/total": float(step)})
        with best_effort.best_effort("another file"):
            storage.write_bytes(str(run / "another"), bytes(1 << 20))
    journal = (run / "stages" / "warmup" / "tracking.jsonl").read_text()
    assert journal.endswith("\n") and journal.count("\n") < 200
    assert caplog.text.count("tracking.jsonl cannot be written") == 1
    assert caplog.text.count("No space left on device") == 1
    assert "MLflow at" not in caplog.text
    assert "without others while the disk is full" in caplog.text
    assert tracker.close("FINISHED")
    history = store.get_metric_history(mlflow_names(run).stages["warmup"], "loss/total")
    assert [(point.step, point.value) for point in history] == [(s, float(s)) for s in range(200)]


def test_what_mlflow_never_accepts_does_not_block_what_follows(
    store: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    for step, (workers, length) in enumerate([("2", 7000), ("1", 7000), ("2", 7001)]):
        tracker = Tracker(run, experiment="tests", stage="warmup")
        tracker.write(Params(values={"workers": workers, "seed": "7", "long": "x" * length}))
        tracker.write(Picture(key="samples", step=1, path=str(tmp_path / "gone.png")))
        tracker.write(Artifact(path=str(tmp_path / "gone.txt")))
        tracker.write(Tags(values={"": "a tag without a name"}))
        tracker.metrics(step, {"loss/total": 1.0})
        assert tracker.close("FINISHED")
    child = store.get_run(mlflow_names(run).stages["warmup"])
    assert (child.data.params["workers"], child.data.params["seed"]) == ("2", "7")
    now = {name: value for name, value in child.data.tags.items() if name.startswith("now.")}
    assert now == {"now.workers": "2"}
    history = store.get_metric_history(child.info.run_id, "loss/total")
    assert [point.step for point in history] == [0, 1, 2]
    assert "gone.png is missing" in caplog.text and "MLflow refuses an event" in caplog.text


def test_metrics_arrive_when_pictures_cannot(
    store: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is to be")
    store.create_experiment("tests", artifact_location=(blocked / "artifacts").as_uri())
    run, pictures = tmp_path / "run", []
    tracker = Tracker(run, experiment="tests", stage="warmup")
    for step in range(3):
        pictures.append(tmp_path / f"{step}.png")
        Image.fromarray(np.full((4, 4, 3), step, np.uint8)).save(pictures[-1])
        tracker.write(Picture(key="samples", step=step, path=str(pictures[-1])))
        tracker.write(Artifact(path=str(pictures[-1]), folder="files"))
        tracker.metrics(step, {"loss/total": 1.0})
    assert not tracker.close("FINISHED")
    assert "takes no files" in caplog.text
    assert "takes no metrics" not in caplog.text
    child = store.get_run(mlflow_names(run).stages["warmup"])
    assert child.info.status == "FINISHED"
    history = store.get_metric_history(child.info.run_id, "loss/total")
    assert [point.step for point in history] == [0, 1, 2]

    blocked.unlink()
    assert Tracker(run, experiment="tests", stage="warmup").close("FINISHED")
    shown = store.list_artifacts(child.info.run_id, "files")
    assert [Path(item.path).name for item in shown] == [picture.name for picture in pictures]
    drawn = [item.path for item in store.list_artifacts(child.info.run_id, "images")]
    assert sum(path.endswith(".png") for path in drawn) == len(pictures)


def test_a_new_store_gets_all_that_was_ever_written(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    first = Tracker(run, experiment="tests", stage="warmup")
    first.metrics(1, {"loss/total": 1.0})
    first.write(Artifact(path=str(picture)))
    assert first.close("KILLED")

    (tmp_path / "new").mkdir()
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    second = Tracker(run, experiment="tests", stage="warmup")
    second.metrics(2, {"loss/total": 0.5})
    assert second.close("FINISHED")
    client = MlflowClient(uri)
    child = client.get_run(mlflow_names(run).stages["warmup"])
    history = client.get_metric_history(child.info.run_id, "loss/total")
    assert [point.step for point in history] == [1, 2]
    assert child.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(child.info.run_id)] == ["grid.png"]


def test_each_kind_of_error_is_logged_once_and_the_recovery_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([OSError("refused"), OSError("refused"), ValueError("too old"), OSError("x")])

    def send(run: MlflowRun, events: list[Event]) -> None:
        if error := next(answers, None):
            raise error

    monkeypatch.setattr(MlflowRun, "run_id", lambda run: "run")
    monkeypatch.setattr(MlflowRun, "send", send)
    monkeypatch.setattr(tracker_module, "RETRY_SECONDS", 0.05)
    run = tmp_path / "run"
    tracker = Tracker(run, experiment="tests", stage="warmup")
    for step in range(3):
        tracker.metrics(step, {"loss/total": 1.0})
    eventually(lambda: "MLflow is back" in caplog.text, seconds=30)
    assert tracker.close("FINISHED")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and "refused" in said[0] and "too old" in said[1]
    assert said[2] == "MLflow is back: 4 events of metrics sent"


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "error code 404"), (200, "not in a valid JSON"), (401, "401")]
)
def test_an_address_that_is_not_mlflows_is_named_once_without_its_password(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    reason: str,
) -> None:
    sent = set[str | None]()
    for name in CREDENTIALS:
        monkeypatch.setenv(name, "")  # and taken away again at the end

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.add(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<!doctype html>\n<html>no such page</html>")

    run, picture = tmp_path / "run", tmp_path / "grid.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:sec%2Fret@{address}")
        tracker = Tracker(run, experiment="tests", stage="warmup")
        tracker.metrics(1, {"loss/total": 1.0})
        tracker.write(Picture(key="samples", step=5, path=str(picture)))
        assert not tracker.close("FINISHED", wait=30)
        server.shutdown()
    (said,) = [record.getMessage() for record in caplog.records]
    assert reason in said and f"http://{address}" in said and "ret@" not in said
    assert sent == {f"Basic {b64encode(b'me:sec/ret').decode()}"}
    assert "\n" not in said


def test_a_store_that_cannot_be_made_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none/mlflow.db")
    assert not Tracker(tmp_path / "run", experiment="tests").close("FINISHED", wait=10)
    assert f"{tmp_path}/none is missing or read only" in caplog.text

"""Journal and a real MLflow store: what arrives, and restarts."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from datagen.records import flatten
from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from training.run_dir.paths import StagePaths
from training.tracking.events import Artifact, DatasetInput, Event, Metrics, Params, Picture, Tags
from training.tracking.journal import Journal, read_metrics
from training.tracking.store.run_names import RunNames, run_page
from training.tracking.tracker import Tracker, close_orphaned_run


def test_everything_written_arrives_in_parent_and_child(
    store: MlflowClient, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    parent = Tracker(run, experiment="tests")
    parent.write(Params(values={"seed": "7"}))
    assert parent.close("FINISHED")

    picture = tmp_path / "grid.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    stage = Tracker(run, experiment="tests", stage="warmup")
    stage.write(Tags(values={"dataset.digest": "d" * 64}))
    stage.write(
        DatasetInput(name="photos", digest="d" * 64, source=str(tmp_path / "dataset"), samples=12)
    )
    stage.write(Picture(key="samples", step=5, path=str(picture)))
    stage.write(Artifact(path=str(picture), folder="files"))
    for step in range(700):
        stage.metrics(step, {"loss/total": 1.0 / (step + 1)})
    assert stage.close("FINISHED")

    names = mlflow_names(run)
    assert store.get_run(names.parent).data.params == {"seed": "7"}
    child = store.get_run(names.stages["warmup"])
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == names.parent
    assert child.data.tags["stage"] == "warmup"
    assert child.data.tags["dataset.digest"] == "d" * 64
    (entry,) = child.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("photos", "d" * 36)
    history = store.get_metric_history(child.info.run_id, "loss/total")
    assert [point.step for point in history] == list(range(700))
    artifacts = {item.path for item in store.list_artifacts(child.info.run_id)}
    assert {"images", "files"} <= artifacts
    experiment = store.get_experiment_by_name("tests")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_restart_continues_the_same_runs(store: MlflowClient, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for start in (0, 10):
        tracker = Tracker(run, experiment="tests", stage="warmup")
        for step in range(start, start + 10):
            tracker.metrics(step, {"loss/total": float(step)})
        if start == 0:
            tracker.write(Tags(values={"ended": "all 10 steps"}))  # and then it is trained further
        assert tracker.close("KILLED" if start == 0 else "FINISHED")
    names = mlflow_names(run)
    assert "ended" not in store.get_run(names.stages["warmup"]).data.tags
    history = store.get_metric_history(names.stages["warmup"], "loss/total")
    assert [point.step for point in history] == list(range(20))
    assert store.get_run(names.stages["warmup"]).info.status == "FINISHED"
    assert len(store.search_runs([store.get_run(names.parent).info.experiment_id])) == 2


DEAD = """
import os, sys
from pathlib import Path
from training.tracking.tracker import Tracker
tracker = Tracker(Path(sys.argv[1]), experiment="tests", stage="warmup")
for step in range(600):
    tracker.metrics(step, {"loss/total": float(step)})
os._exit(1)
"""


def test_the_run_of_a_dead_process_is_closed_with_all_it_wrote_and_reopened_later(
    store: MlflowClient, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", DEAD, str(run)], check=False, timeout=120)
    for reason in ("its host was lost", "ignored: it has ended already"):
        close_orphaned_run(
            StagePaths(run, "warmup"),
            experiment="tests",
            status="FAILED",
            reason=reason,
            wait=60,
        )
    child = store.get_run(mlflow_names(run).stages["warmup"])
    assert child.info.status == "FAILED" and child.data.tags["failure"] == "its host was lost"
    history = store.get_metric_history(child.info.run_id, "loss/total")
    assert [point.step for point in history] == list(range(600))

    tracker = Tracker(run, experiment="tests", stage="warmup")
    _wait_until_sent(run)
    child = store.get_run(child.info.run_id)
    assert child.info.status == "RUNNING" and "failure" not in child.data.tags
    assert tracker.close("FINISHED")


def _wait_until_sent(run: Path) -> None:
    journal = Journal(run / "stages" / "warmup")
    eventually(lambda: journal.all_sent, seconds=60)


def test_an_end_that_is_sent_late_does_not_end_a_run_that_continues(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
        first = Tracker(run, experiment="tests", stage="warmup")
        assert not first.close("FAILED", reason="a stall", wait=30)
    second = Tracker(run, experiment="tests", stage="warmup")
    _wait_until_sent(run)
    child = store.get_run(mlflow_names(run).stages["warmup"])
    assert child.info.status == "RUNNING" and "failure" not in child.data.tags
    assert second.close("FINISHED")


def test_two_senders_of_one_journal_send_nothing_twice(store: MlflowClient, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tracker = Tracker(run, experiment="tests", stage="warmup")
    other = Tracker(run, experiment="tests", stage="warmup", begins=False)
    for step in range(1500):
        tracker.metrics(step, {"loss/total": float(step)})
    assert tracker.close("FINISHED") and other.close(None)
    history = store.get_metric_history(mlflow_names(run).stages["warmup"], "loss/total")
    assert [point.step for point in history] == list(range(1500))


class _Growing(io.BufferedReader):
    """A file whose last line is completed as soon as a part of it was read."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline()
        if line and not line.endswith(b"\n"):
            with open(self.name, "ab") as file:
                file.write(END)
        return line


END = b'values":{"loss/total":2.0}}\n'


def test_an_incomplete_line_is_sent_once_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, sent = Journal(tmp_path), list[Event]()
    first, second = (Metrics(step=n, time_ms=n, values={"loss/total": float(n)}) for n in (1, 2))
    journal.append(first)
    begun = second.model_dump_json().encode().removesuffix(END.rstrip())
    journal.path.open("ab").write(begun)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode="r": _Growing(io.FileIO(path, mode)))
        while journal.send(sent.extend, run_id="run") and len(sent) < 2:
            pass
    assert sent == [first, second]


def test_only_a_run_on_a_server_has_a_page(tmp_path: Path) -> None:
    assert run_page(tmp_path) is None
    names = RunNames(tracking_uri="sqlite:///mlflow.db", experiment="tests", parent="abc")
    (tmp_path / "mlflow.json").write_text(names.model_dump_json())
    assert run_page(tmp_path) is None
    names = names.model_copy(update={"tracking_uri": "https://me:secret@host:5000/"})
    (tmp_path / "mlflow.json").write_text(names.model_dump_json())
    page = run_page(tmp_path)
    assert (
        page is not None and page.startswith("https://") and page.endswith("host:5000/#/runs/abc")
    )
    assert "secret" not in page


def test_a_damaged_line_is_dropped(store: MlflowClient, tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal = run / "stages" / "warmup" / "tracking.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"kind": "metrics", "step": 1, "time_ms": 1, "val')
    tracker = Tracker(run, experiment="tests", stage="warmup")
    tracker.metrics(2, {"loss/total": 2.0})
    assert tracker.close("FINISHED")
    history = store.get_metric_history(mlflow_names(run).stages["warmup"], "loss/total")
    assert [point.step for point in history] == [2]


def test_journal_lines_are_parsed_whatever_their_field_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text(
        '{"values": {"loss/total": 2.0}, "time_ms": 1, "step": 3, "kind": "metrics"}\n'
        '{"reason": null, "status": "FINISHED", "kind": "end"}\n'
    )
    assert journal.ended
    series = read_metrics(tmp_path, prefix="loss/")["loss/total"]
    assert (series.steps, series.values) == ([3], [2.0])


def test_nested_settings_become_dotted_parameters() -> None:
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {
        "a.b": "1",
        "a.c": "[1, 2]",
        "d": "None",
    }

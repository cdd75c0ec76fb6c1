"""MLflow runs that are deleted there while their training goes on, or share a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from training.tracking import tracker as tracker_module
from training.tracking.events import Metrics, Tags
from training.tracking.journal import journals
from training.tracking.store.mlflow_run import PARENT
from training.tracking.tracker import Tracker


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for pause in ("RETRY_SECONDS", "SEND_SECONDS"):
        monkeypatch.setattr(tracker_module, pause, 0.1)
    return MlflowClient(uri)


def _sent(*homes: Path) -> None:
    all_of_them = [journal for home in homes for journal in journals(home)]
    eventually(lambda: all(journal.all_sent for journal in all_of_them), seconds=60)


def _curve(run: Path, step: int) -> None:
    values = {"val/psnr_nfe1": float(step)}
    journals(run).curves.append(Metrics(step=step, time_ms=step, values=values))


def _steps(store: MlflowClient, run_id: str, name: str) -> list[int]:
    return [point.step for point in store.get_metric_history(run_id, name)]


def test_a_run_deleted_while_training_is_made_again_with_all_that_was_logged(
    store: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, home = tmp_path / "run", tmp_path / "run" / "stages" / "warmup"
    parent = Tracker(run, experiment="tests")
    parent.write(Tags(values={"recipe.digest": "d"}))
    stage = Tracker(run, experiment="tests", stage="warmup", label="1 warmup")
    stage.metrics(1, {"loss/fm": 1.0})
    _curve(run, 1)
    _sent(run, home)
    first = mlflow_names(run)

    store.delete_run(first.parent)
    _curve(run, 2)
    _sent(run)
    second = mlflow_names(run)
    assert second.parent != first.parent and second.stages == first.stages
    assert _steps(store, second.parent, "val/psnr_nfe1") == [1, 2]
    # All of its other events count as sent until they are looked at for the new run.
    eventually(lambda: "recipe.digest" in store.get_run(second.parent).data.tags, seconds=60)
    made = store.get_run(second.parent)
    assert made.data.tags["recipe.digest"] == "d" and made.info.status == "RUNNING"
    assert store.get_run(first.stages["warmup"]).data.tags[PARENT] == second.parent
    assert f"the MLflow run of {run} was deleted there" in caplog.text

    store.delete_run(first.stages["warmup"])
    # Of a deleted run MLflow takes no tag either: it must not be skipped like a bad one.
    stage.write(Tags(values={"note": "after that"}))
    _sent(home)
    third = mlflow_names(run)
    child = store.get_run(third.stages["warmup"])
    assert third.parent == second.parent and child.info.run_id != first.stages["warmup"]
    assert _steps(store, child.info.run_id, "loss/fm") == [1]
    assert child.data.tags["note"] == "after that"
    assert child.info.run_name == f"{made.info.run_name} · 1 warmup"
    assert stage.close("FINISHED") and parent.close("FINISHED")
    experiment = store.get_experiment_by_name("tests")
    assert len(store.search_runs([experiment.experiment_id])) == 2


def test_runs_deleted_between_two_starts_are_made_again(
    store: MlflowClient, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        parent = Tracker(run, experiment="tests")
        stage = Tracker(run, experiment="tests", stage="warmup")
        stage.metrics(step, {"loss/fm": 1.0})
        _curve(run, step)
        assert stage.close("KILLED") and parent.close("KILLED")
        names = mlflow_names(run)
        if step == 1:
            for run_id in (names.parent, names.stages["warmup"]):
                store.delete_run(run_id)
    assert _steps(store, names.parent, "val/psnr_nfe1") == [1, 2]
    assert _steps(store, names.stages["warmup"], "loss/fm") == [1, 2]
    assert store.get_run(names.stages["warmup"]).data.tags[PARENT] == names.parent


def test_two_trainings_in_folders_of_the_same_name_are_told_apart(
    store: MlflowClient, tmp_path: Path
) -> None:
    folders = [tmp_path / disk / 'it\'s "one"' / "run" for disk in "abc"]
    folders += [tmp_path / disk / "it's one" / "run" for disk in "abc"]
    for folder in folders:
        assert Tracker(folder, experiment="tests").close("FINISHED")
    names = [store.get_run(mlflow_names(folder).parent).info.run_name for folder in folders]
    assert names[3:] == ["it's one/run", "it's one/run (2)", "it's one/run (3)"]
    assert names[0] == 'it\'s "one"/run'

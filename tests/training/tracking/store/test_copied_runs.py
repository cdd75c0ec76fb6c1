"""A run's folder that is copied, moved or reached another way, with a real MLflow store."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from datagen.errors import FlowmapsrError
from datagen.io.lock import TRAINING, output_lock
from datagen.io.lock_owner import from_bytes, to_bytes
from pipelines.recipes.load import training_recipe
from tests.support.mlflow_runs import mlflow_names
from training.run_dir import place
from training.run_dir.records import EvaluationRow
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe
from training.tracking.evaluation_log import finished_training, log_evaluation
from training.tracking.events import Picture
from training.tracking.journal import journals
from training.tracking.parent_run import flush_pending
from training.tracking.review.chosen import chosen
from training.tracking.store.mlflow_run import FOLDER, PARENT
from training.tracking.store.run_names import RunNames, run_page
from training.tracking.summary.status import run_status
from training.tracking.tracker import Tracker, fully_sent

LOSS = "loss/fm"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


@pytest.fixture
def run(tmp_path: Path, store: MlflowClient) -> Path:
    """A run with one step of a stage in MLflow."""
    return _trained(tmp_path / "run", 1)


def _trained(run: Path, step: int) -> Path:
    parent = Tracker(run, experiment="tests")
    stage = Tracker(run, experiment="tests", stage="warmup")
    stage.metrics(step, {LOSS: float(step)})
    assert stage.close("KILLED") and parent.close("KILLED")
    return run


def _steps(store: MlflowClient, names: RunNames) -> list[int]:
    return [point.step for point in store.get_metric_history(names.stages["warmup"], LOSS)]


def test_a_copy_gets_runs_of_its_own_and_writes_nothing_to_those_of_the_original(
    store: MlflowClient, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = run / "stages" / "warmup" / "images" / "photo.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 4)).save(picture)
    event = Picture(key="photo", step=1, path=str(picture))
    journals(run / "stages" / "warmup").files.append(event)  # not sent yet
    live = Tracker(run, experiment="tests", stage="warmup")  # copied while it is trained
    live.metrics(5, {LOSS: 5.0})
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    live.metrics(6, {LOSS: 6.0})
    assert live.close("KILLED")
    with pytest.raises(FlowmapsrError, match=f"copy is a copy of {run}: nothing of it is in"):
        chosen([str(copy)])
    assert run_page(copy) is None
    shutil.rmtree(picture.parent)
    original, before = mlflow_names(run), store.get_run(mlflow_names(run).parent).to_dictionary()
    _trained(copy, 2)
    names = mlflow_names(copy)
    assert f"{copy} is a copy of {run}" in caplog.text
    assert names.parent != original.parent and names.stages != original.stages
    assert _steps(store, original) == [1, 5, 6] and _steps(store, names) == [1, 5, 2]
    assert store.get_run(original.parent).to_dictionary() == before
    tags = [store.get_run(one).data.tags for one in (names.parent, names.stages["warmup"])]
    came_from = f"{run} (MLflow run {original.parent})"
    assert [one["copied_from"] for one in tags] == [came_from, came_from]
    assert (tags[0][FOLDER], tags[1][PARENT]) == (str(copy), names.parent)
    assert [file.path for file in store.list_artifacts(names.stages["warmup"])] == ["images"]
    _trained(run, 3)
    assert mlflow_names(run) == original and _steps(store, original) == [1, 5, 6, 3]
    _trained(copy, 4)
    assert mlflow_names(copy) == names and _steps(store, names) == [1, 5, 2, 4]


def test_a_moved_run_keeps_its_runs_and_sends_its_files_from_there(
    store: MlflowClient, run: Path, tmp_path: Path
) -> None:
    names = mlflow_names(run)
    stage = Path(run.rename(tmp_path / "moved")) / "stages" / "warmup"
    Image.new("RGB", (4, 4)).save(stage / "photo.png")
    journal = journals(stage).files
    journal.append(Picture(key="photo", step=1, path=str(stage / "photo.png")))
    moved = Path(shutil.move(tmp_path / "moved", tmp_path / "again"))
    _trained(moved, 2)
    assert (now := mlflow_names(moved)).parent == names.parent and now.stages == names.stages
    assert _steps(store, now) == [1, 2]
    assert store.get_run(now.parent).data.tags[FOLDER] == str(moved)
    assert [file.path for file in store.list_artifacts(now.stages["warmup"])] == ["images"]


def test_of_two_copies_whose_original_is_gone_one_keeps_its_runs(
    store: MlflowClient, run: Path, tmp_path: Path
) -> None:
    names = mlflow_names(run)
    first, second = (Path(shutil.copytree(run, tmp_path / name)) for name in ("first", "second"))
    run.rename(tmp_path / "on a disk that is away")
    _trained(first, 2)
    _trained(second, 3)
    assert mlflow_names(first).parent == names.parent != mlflow_names(second).parent
    (tmp_path / "on a disk that is away").rename(run)
    _trained(run, 4)
    assert len({mlflow_names(one).parent for one in (run, first, second)}) == 3
    assert _steps(store, mlflow_names(first)) == [1, 2]
    assert _steps(store, mlflow_names(run)) == [1, 4]


@pytest.mark.parametrize("host", ["here", "another"])
def test_a_folder_reached_by_another_path_or_from_another_machine_is_the_same(
    store: MlflowClient, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    names = mlflow_names(run)
    monkeypatch.setattr(place.socket, "gethostname", lambda: host)
    (tmp_path / "link").symlink_to(run)
    for path in (tmp_path / "link", run):
        _trained(path, 2)
    # As another mount of it, where the old path is nothing.
    mount = Path(run.rename(tmp_path / "mount"))
    _trained(mount, 3)
    assert mlflow_names(mount).stages == names.stages


@pytest.mark.parametrize(("host", "is_same"), [("here", True), ("another", False)])
def test_a_copy_at_the_same_path_is_the_run_here_and_another_one_elsewhere(
    store: MlflowClient, run: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_same: bool
) -> None:
    """Here it is a backup that was put back; on another machine the original may live on."""
    names = mlflow_names(run)
    if host != "here":
        monkeypatch.setattr(place.socket, "gethostname", lambda: host)
    original = run.rename(run.with_name("original"))  # removed, its inode could be taken again
    shutil.copytree(original, run)
    _trained(run, 2)
    assert (mlflow_names(run).parent == names.parent) == is_same


def test_two_mounts_of_a_folder_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    place.give_id(run, None)
    other.symlink_to(run)
    monkeypatch.setattr(place.os.path, "samefile", lambda *_: False)  # as of other devices
    known = place.place_of(run).model_copy(update={"changed": 0, "path": str(other)})
    assert not place.is_copy(known, place.place_of(run))
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert place.is_copy(known, place.place_of(copy))
    assert not list(run.glob(".folder_id-*"))


def test_a_store_that_was_moved_with_the_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "demo"
    base.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base / 'mlflow.db'}")
    names = mlflow_names(_trained(base / "run", 1))
    moved = Path(base.rename(tmp_path / "moved"))
    uri = f"sqlite:///{moved / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    now = mlflow_names(_trained(moved / "run", 2))
    assert (now.parent, now.tracking_uri) == (names.parent, uri)


def test_a_copy_of_a_finished_training_is_sent_whole_and_evaluated_as_its_own(
    undisturbed: TrainingRecipe, store: MlflowClient, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(undisturbed.output, tmp_path / "copy"))
    found = finished_training(str(copy))
    assert found.output == str(copy) == training_recipe(f"{copy}/recipe.json").output
    (copy / "stages" / "distill" / "done.json").rename(tmp_path / "done.json")
    with output_lock(str(copy), TRAINING):
        (lock,) = copy.glob("training-*.lock")
        silent = replace(from_bytes(lock.read_bytes()), heartbeat=time.time() - 100)
        lock.write_bytes(to_bytes(silent))
        # As of a training that was copied while it ran, and that still runs.
        assert run_status(copy).current.state == "stopped"
    (tmp_path / "done.json").rename(copy / "stages" / "distill" / "done.json")
    row = EvaluationRow(method="bicubic", scale=2, steps=0, psnr=20.0, ssim=0.5, seconds=1.0)
    log_evaluation(found, EvaluationSettings(photos="/photos"), [row])  # before it is trained
    flush_pending(found)
    names = mlflow_names(copy)
    assert names.parent != mlflow_names(undisturbed.output).parent
    for name, run_id in names.stages.items():
        history = store.get_metric_history(run_id, "loss/total")
        assert [point.step for point in history] == [10, 20, 30, 40, 50, 60], name
        assert store.get_run(run_id).info.status == "FINISHED"
    assert fully_sent(copy)
    assert store.get_run(names.parent).data.metrics["eval/psnr_x2_bicubic"] == 20.0
    original = Path(undisturbed.output)
    assert "eval/" not in (original / "tracking.jsonl").read_text()
    assert store.get_run(names.parent).data.tags["copied_from"].startswith(undisturbed.output)

"""A finished dataset in a real MLflow store, and an unreachable tracking server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from datagen.dataset.manifest import Dataset, load_manifest
from datagen.settings import DatasetRecipe
from training.tracking.dataset_run import log_dataset
from training.tracking.events import DatasetInput
from training.tracking.store.dataset_links import EXPERIMENT
from training.tracking.tracker import Tracker


@pytest.fixture
def recipe(dataset: Path) -> DatasetRecipe:
    return load_manifest(str(dataset)).dataset_recipe(str(dataset))


def test_a_dataset_is_logged_as_the_input_of_its_run(
    recipe: DatasetRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    manifest = load_manifest(recipe.output)
    log_dataset(recipe, manifest, seconds=1.5)

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset.digest"] == manifest.digest
    assert run.data.tags["recipe.digest"] == recipe.digest()
    assert run.data.tags["output"] == recipe.output
    assert (run.data.tags["role"], run.data.tags["left_out"]) == ("dataset", "")
    assert sum(int(one.split(": ")[1]) for one in run.data.tags["buckets"].split(", ")) == 12
    assert run.data.params["seed"] == "0" and run.data.params["buckets.step"] == "32"
    assert run.data.metrics == {
        "num_samples": 12.0,
        "num_shards": 3.0,
        "bytes": float(manifest.bytes),
        "rejected": 0.0,
        "seconds": 1.5,
    }
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("dataset", manifest.digest[:36])
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"histograms.png", "images", "manifest-summary.json", "preview.png"}
    summary = client.download_artifacts(run.info.run_id, "manifest-summary.json")
    content = json.loads(Path(summary).read_text())
    assert content["num_samples"] == 12 and "shards" not in content


def test_the_pages_of_a_dataset_and_of_its_trainings_open_each_other(
    recipe: DatasetRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    manifest = load_manifest(recipe.output)
    log_dataset(recipe, manifest, seconds=1.5)
    for run in (tmp_path / "one", tmp_path / "two"):
        tracker = Tracker(run, experiment="portraits")
        tracker.write(DatasetInput.of(Dataset(manifest, recipe.output)))
        assert tracker.close("FINISHED")

    client = MlflowClient(uri)
    experiment, datasets = (
        client.get_experiment_by_name(name) for name in ("portraits", EXPERIMENT)
    )
    assert experiment is not None and datasets is not None
    (made,) = client.search_runs([datasets.experiment_id])
    for training in client.search_runs([experiment.experiment_id]):
        (entry,) = training.inputs.dataset_inputs
        page = f"#/experiments/{datasets.experiment_id}/runs/{made.info.run_id}"
        assert json.loads(entry.dataset.source)["url"].startswith(page)
    note = made.data.tags["mlflow.note.content"]
    assert note.count("[Trainings on this dataset in portraits](#/experiments/") == 1
    assert manifest.digest in note


def test_an_unreachable_server_is_a_warning(
    recipe: DatasetRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_dataset(recipe, load_manifest(recipe.output), seconds=1.5)
    assert "http://127.0.0.1:9" in caplog.text and "not logged" in caplog.text

"""A finished dataset in a real MLflow store, and an unreachable tracking server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from datagen.dataset.manifest import load_manifest
from datagen.settings import DatasetRecipe
from training.tracking.dataset_run import EXPERIMENT, log_dataset


@pytest.fixture
def recipe(dataset: Path) -> DatasetRecipe:
    return load_manifest(str(dataset)).dataset_recipe(str(dataset))


def test_a_dataset_is_logged_as_the_input_of_its_run(
    recipe: DatasetRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    manifest = load_manifest(recipe.output)
    log_dataset(recipe, manifest)

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset.digest"] == manifest.digest
    assert run.data.tags["recipe.digest"] == recipe.digest()
    assert run.data.tags["output"] == recipe.output
    assert run.data.params["seed"] == "0" and run.data.params["buckets.step"] == "32"
    assert run.data.metrics == {
        "num_samples": 12.0,
        "num_shards": 3.0,
        "bytes": float(manifest.bytes),
        "rejected": 0.0,
    }
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("dataset", manifest.digest[:36])
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"histograms.png", "manifest-summary.json", "preview.png"}
    summary = client.download_artifacts(run.info.run_id, "manifest-summary.json")
    content = json.loads(Path(summary).read_text())
    assert content["num_samples"] == 12 and "shards" not in content


def test_an_unreachable_server_is_a_warning(
    recipe: DatasetRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_dataset(recipe, load_manifest(recipe.output))
    assert "http://127.0.0.1:9" in caplog.text and "not logged" in caplog.text

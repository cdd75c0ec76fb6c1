"""A training on a machine without MLflow, which is sent to MLflow later."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from datagen.errors import FlowmapsrError
from tests.support.launch import start_workers, train
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import WARMUP, RunMaker
from training.run_dir.paths import StagePaths
from training.tracking.journal import read_metrics
from training.weights.initialize import fetch_weights


def test_a_run_without_mlflow_says_so_once_and_is_sent_later(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = [{**WARMUP, "name": name, "steps": 10} for name in ("first", "second")]
    recipe = run_recipe(tmp_path / "run", stages=stages).model_copy(update={"workers": 1})
    workers = start_workers(recipe, tmp_path, module="tests.training.workers.without_mlflow")
    output, _ = workers.communicate(timeout=280)
    assert workers.returncode == 0, output
    said, where, last = [line for line in output.splitlines() if "MLflow" in line]
    assert said == (
        f"warning: MLflow is not installed: training goes on, and metrics and pictures wait in "
        f"{recipe.output}; the same command with mlflow installed sends all of them"
    )
    assert "metrics  not in MLflow yet" in where
    assert last == output.splitlines()[-1] and last.startswith("Not sent to MLflow yet: ")
    assert f"events in {recipe.output}/stages/first" in last
    assert not Path(f"{recipe.output}/mlflow.json").exists()
    assert output.count("holds no samples out") == 1

    train(recipe, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    names = mlflow_names(recipe.output)
    assert client.get_run(names.parent).info.status == "FINISHED"
    for stage in ("first", "second"):
        run = client.get_run(names.stages[stage])
        assert run.info.status == "FINISHED"
        written = read_metrics(StagePaths(Path(recipe.output), stage).root)
        assert run.data.metrics.keys() == written.keys()
        assert run.data.metrics["loss/total"] == written["loss/total"].values[-1]
        pictures = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
        assert any("photo_1" in path for path in pictures)


def test_weights_of_the_registry_need_mlflow(
    run_recipe: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "init_from": "models:/net/1"}])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(FlowmapsrError, match="models:/net/1 needs MLflow"):
        fetch_weights(recipe, StagePaths(tmp_path / "run", "warmup"))

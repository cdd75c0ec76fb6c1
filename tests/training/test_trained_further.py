"""A finished training that gets more steps, is killed on its way, and whose later stage is trained
anew: weights to the last bit, records, and a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.eventually import eventually
from tests.support.launch import finish, start_workers, train
from tests.support.mlflow_runs import mlflow_names
from tests.support.processes import kill_tree
from tests.support.tiny import DISTILL, WARMUP, RunMaker, same_weights
from training.checkpoints.records import COMMIT
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_starts
from training.settings.recipe import TrainingRecipe
from training.settings.stage import learning_rate
from training.tracking.journal import read_metrics

COSINE = {"lr_final_fraction": 0.1}


def _steps(client: MlflowClient, run_id: str, name: str = "loss/total") -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, name)]


@pytest.mark.timeout(600)
def test_more_steps_give_the_weights_of_a_run_that_had_them_from_the_start(
    run_recipe: RunMaker, undisturbed: TrainingRecipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    short, longer, whole = (
        run_recipe(run, stages=[{**WARMUP, "steps": first}, {**DISTILL, "steps": second, **rate}])
        for first, second, rate in ((20, 10, COSINE), (60, 20, COSINE), (60, 60, {}))
    )
    warmup, distill = StagePaths(run, "warmup"), StagePaths(run, "distill")
    train(short, tmp_path)
    names, client = mlflow_names(run), MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")

    process = start_workers(longer, tmp_path)
    eventually((warmup.checkpoints / "step-000030" / COMMIT).exists, process)
    kill_tree(process)
    process.communicate(timeout=100)
    assert not warmup.done.exists()
    second = start_workers(longer, tmp_path)
    said, _ = second.communicate(timeout=280)
    assert second.returncode == 0, said
    assert "distill rests on the old weights of warmup at step 20, and is kept" in said
    assert f"flowmapsr train {run}/recipe.json --redo-later" in said

    assert same_weights(longer, undisturbed, "warmup")
    record = json.loads(warmup.done.read_text())
    assert (record["steps"], record["images_seen"], record["ended"]) == (60, 240, "all 60 steps")
    starts = read_starts(warmup)
    assert [start.is_restart for start in starts] == [False, False, True]
    assert starts[1].step == 20 and starts[2].step >= 30
    # Of the cosine, the closed form of the new length from there on.
    rates = read_metrics(distill.root)["optim/learning_rate"]
    assert rates.steps == [10, 20]
    assert rates.values == [
        learning_rate(recipe.stage("distill"), step - 1)
        for recipe, step in ((short, 10), (longer, 20))
    ]
    assert mlflow_names(run) == names
    assert set(_steps(client, names.stages["warmup"])) == {10, 20, 30, 40, 50, 60}
    stage = client.get_run(names.stages["warmup"])
    assert (stage.info.status, stage.data.tags["ended"]) == ("FINISHED", "all 60 steps")
    assert stage.data.tags["now.steps"] == "60"
    parent = client.get_run(names.parent)
    assert (parent.info.status, parent.data.tags["now.warmup.steps"]) == ("FINISHED", "60")
    # On the parent's axis what was trained further comes after the stages that were there.
    assert set(_steps(client, names.parent)) == {10, 20, 30, 40, 50, 60, 70, 80}
    models = client.search_logged_models(
        [stage.info.experiment_id], filter_string="name = 'warmup'"
    )
    found = {model.params["step"]: model.tags.get("superseded") for model in models}
    assert found == {"20": "by step 60", "60": None}
    assert "| on old weights of | - | warmup at step 20 |" in (run / "stages.md").read_text()

    finish(start_workers(whole, tmp_path, words=["--redo-later"]))
    assert same_weights(whole, undisturbed, "distill")
    kept = StagePaths(run, "distill.1")
    assert json.loads(kept.done.read_text())["steps"] == 20
    now = mlflow_names(run)
    assert now.parent == names.parent and now.stages["distill.1"] == names.stages["distill"]
    old = client.get_run(names.stages["distill"])
    assert "warmup was trained further" in old.data.tags["superseded"]
    assert old.info.status == "FINISHED" and set(_steps(client, old.info.run_id)) == {10, 20}
    assert set(_steps(client, now.stages["distill"])) == {10, 20, 30, 40, 50, 60}
    named = client.get_run(now.stages["distill"]).info.run_name
    assert named == f"{old.info.run_name} (2)"
    assert max(_steps(client, names.parent)) == 60 + 20 + 60
    assert "on old weights" not in (run / "stages.md").read_text()

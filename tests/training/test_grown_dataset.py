"""A dataset that is extended in place while a run reads it, under two real workers."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from datagen.build.builder import ShardBuilder
from datagen.build.finish import finish as finish_build
from datagen.build.finish import pending_tasks
from datagen.build.plan import plan_dataset
from datagen.dataset.manifest import load_manifest
from datagen.review.verify import verify_dataset
from tests.support.eventually import eventually
from tests.support.launch import start_workers
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import (
    DISTILL,
    WARMUP,
    RunMaker,
    dataset_recipe,
    same_weights,
    write_photos,
)
from training.checkpoints.records import COMMIT
from training.run_dir.paths import StagePaths
from training.settings.recipe import TrainingRecipe


@pytest.mark.timeout(300)
def test_a_run_whose_dataset_grows_is_that_of_one_that_never_grew_until_it_takes_up_the_rest(
    dataset: Path, run_recipe: RunMaker, undisturbed: TrainingRecipe, tmp_path: Path
) -> None:
    root = tmp_path / "dataset"
    shutil.copytree(dataset, root)
    first = load_manifest(str(root)).digest
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, DISTILL])
    recipe = recipe.model_copy(update={"manifest": str(root)})
    warmup, distill = (StagePaths(tmp_path / "run", name) for name in ("warmup", "distill"))
    build = dataset_recipe(write_photos(tmp_path / "photos", 5), root)
    plan = plan_dataset(build)
    for task in pending_tasks(plan):
        ShardBuilder(build)(task)  # the extension is open when the training begins
    process = start_workers(recipe, tmp_path)
    eventually((warmup.checkpoints / "step-000010" / COMMIT).exists, process)
    launcher = psutil.Process(process.pid)
    processes = [launcher, *launcher.children(recursive=True)]
    for one in processes:  # else the stage may end before the extension does
        one.suspend()
    second = finish_build(plan)
    process.send_signal(signal.SIGTERM)
    for one in processes:
        one.resume()
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0 and not distill.done.exists() and "samples more" not in output

    process = start_workers(recipe, tmp_path)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    told = "8 samples more than this training took up (20, not 12)"
    assert output.count(told) == 1, output
    assert all(same_weights(recipe, undisturbed, stage) for stage in ("warmup", "distill"))

    shutil.rmtree(distill.root)
    process = start_workers(recipe, tmp_path, words=["--newer-data"])
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and told not in output, output
    assert same_weights(recipe, undisturbed, "warmup")
    assert not same_weights(recipe, undisturbed, "distill")
    records = [json.loads(stage.done.read_text()) for stage in (warmup, distill)]
    assert [record["dataset_digest"] for record in records] == [first, second.digest]
    taken_up = json.loads((tmp_path / "run" / "datasets.json").read_text())["stages"]
    assert [(one["digest"], one["samples"]) for one in taken_up.values()] == [
        (first, 12),
        (second.digest, 20),
    ]
    client, names = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), mlflow_names(recipe.output)
    parent, child = client.get_run(names.parent), client.get_run(names.stages["distill"])
    inputs = {one.dataset.digest for one in parent.inputs.dataset_inputs}
    assert inputs == {first[:36], second.digest[:36]}
    assert parent.data.tags["dataset.digest"] == child.data.tags["dataset.digest"] == second.digest
    assert f"distill 20 ({second.digest[:12]})" in parent.data.tags["dataset.samples_of_stages"]
    assert "different data (warmup 12, distill 20" in parent.data.tags["mlflow.note.content"]
    assert verify_dataset(str(root)) == []

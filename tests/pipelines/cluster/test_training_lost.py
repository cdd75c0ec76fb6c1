"""Trainings by the command line that lose their Prefect server, or their run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.pipelines.conftest import write_training
from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from tests.support.prefect_servers import running_server
from tests.support.processes import kill_tree
from tests.support.tiny import MODEL, WARMUP, RunMaker
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageRecord
from training.run_dir.starts import read_starts
from training.tracking.journal import read_metrics

Run = Callable[..., Any]
STEPS = 300
STEPS_ALONE = 1500
"""More than the first training can do before it notices that it has lost its folder."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_ends_well_when_its_prefect_server_is_killed(
    dataset: Path, tmp_path: Path, ray_cluster_address: str, start: Run, finished: Run
) -> None:
    run = tmp_path / "run"
    stages = [{**WARMUP, "steps": STEPS}, {**WARMUP, "name": "second", "steps": 2}]
    values = {"model": MODEL, "stages": stages, "workers": 1}
    recipe = write_training(tmp_path / "tiny.json", values)
    words = ("train", recipe, f"manifest={dataset}", f"output={run}", "--json")
    with running_server(tmp_path) as server:
        process = start(*words, env={**server.env, "RAY_ADDRESS": ray_cluster_address})
        eventually((run / "stages" / "warmup" / "progress.json").exists)
        (flow_run,) = server.post("/flow_runs/filter", {})
        assert flow_run["state_name"] == "Running"
        kill_tree(server.process)
        assert StagePaths(run, "warmup").finished_record() is None, "it was killed too late"
        ended = finished(process)
    assert ended.code == 0, ended.err
    assert ended.err.count("Prefect does not answer") == 1 and "Traceback" not in ended.err
    assert [StageRecord.model_validate(one).steps for one in ended.json["stages"]] == [STEPS, 2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_whose_folder_is_taken_over_stops_and_writes_no_more(
    run_recipe: RunMaker, tmp_path: Path, start: Run, finished: Run
) -> None:
    run, store = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    recipe = run_recipe(run, stages=[{**WARMUP, "steps": STEPS_ALONE}])
    path = write_training(tmp_path / "tiny.json", recipe)
    env = {"MLFLOW_TRACKING_URI": store}
    first = start("train", path, env=env)
    stage = StagePaths(run, "warmup")
    eventually(stage.progress.exists)
    second = start("train", path, "--take-over", env=env)
    ended = finished(first)
    assert ended.code == 1 and "has taken over" in ended.err
    assert "Traceback" not in ended.err
    ended = finished(second)
    assert ended.code == 0, ended.err
    starts = read_starts(stage)
    assert len(starts) == 2
    client = MlflowClient(store)
    names = mlflow_names(run)
    runs = [client.get_run(one) for one in (names.parent, names.stages["warmup"])]
    assert [one.info.status for one in runs] == ["FINISHED", "FINISHED"]
    steps = read_metrics(stage.root, prefix="loss/total")["loss/total"].steps
    assert steps[-1] == STEPS_ALONE

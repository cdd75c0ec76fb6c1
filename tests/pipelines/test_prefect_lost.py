"""A Prefect server that is killed in the middle of a training costs a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.prefect_servers import kill, running_server, wait_until
from tests.tiny import MODEL, WARMUP
from training.records import StageRecord
from training.run_folder import StageFolder

Run = Callable[..., Any]
STEPS = 300


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_ends_well_when_its_prefect_server_is_killed(
    dataset: Path, tmp_path: Path, ray_cluster_address: str, start: Run, finished: Run
) -> None:
    recipe, run = tmp_path / "tiny.json", tmp_path / "run"
    stages = [{**WARMUP, "steps": STEPS}, {**WARMUP, "name": "second", "steps": 2}]
    recipe.write_text(json.dumps({"model": MODEL, "stages": stages, "workers": 1}))
    words = ("train", str(recipe), f"manifest={dataset}", f"output={run}", "--json")
    with running_server(tmp_path) as server:
        process = start(*words, env={**server.env, "RAY_ADDRESS": ray_cluster_address})
        wait_until((run / "stages" / "warmup" / "progress.json").exists)
        (flow_run,) = server.post("/flow_runs/filter", {})
        assert flow_run["state_name"] == "Running"
        kill(server.process)
        assert StageFolder(run, "warmup").record() is None, "it was killed too late"
        ended = finished(process)
    assert ended.code == 0, ended.err
    assert ended.err.count("Prefect does not answer") == 1 and "Traceback" not in ended.err
    assert [StageRecord.model_validate(one).steps for one in ended.json["stages"]] == [STEPS, 2]

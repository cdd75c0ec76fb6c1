"""Files of a run truncated by a kill, a lost disk or an editor: reported, or not needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from datagen.errors import FlowmapsrError
from tests.pipelines.conftest import write_training
from tests.support.launch import train
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import same_weights
from training.run_dir.paths import StagePaths, finished_stages
from training.run_dir.recipe_guard import check_recipe
from training.run_dir.starts import read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import read_metrics
from training.weights.model_folder import find_model

Run = Callable[..., Any]
HALVES, EMPTY = "half of it", "nothing"
STAGE = Path("stages", "distill")


def _truncate(path: Path, left: str) -> None:
    """Truncates a file, as a killed write without a rename or a full disk does."""
    os.truncate(path, path.stat().st_size // 2 if left == HALVES else 0)


@pytest.fixture
def stopped(undisturbed: TrainingRecipe, tmp_path: Path) -> TrainingRecipe:
    """A run that was killed in its last stage, ten steps before the end."""
    shutil.copytree(undisturbed.output, tmp_path / "run")
    home = tmp_path / "run" / STAGE
    (home / "done.json").unlink()
    shutil.rmtree(home / "checkpoints" / "step-000060")
    return undisturbed.model_copy(update={"output": str(tmp_path / "run")})


@pytest.mark.parametrize("left", [HALVES, EMPTY])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recipe.json", "recipe.json is corrupt"),
        ("stages/warmup/done.json", "done.json is corrupt"),
        ("stages/distill/progress.json", "progress.json is corrupt"),
        ("stages/distill/ended.json", "distill stopped: unknown"),
        ("stages/distill/starts.jsonl", "distill stopped: finished"),
        ("stages/distill/tracking.jsonl", "distill stopped: finished"),
        ("stages/distill/tracking.sent", "distill stopped: finished"),
        ("mlflow.json", "distill stopped: finished"),
    ],
)
def test_status_reports_a_corrupt_file(
    stopped: TrainingRecipe, invoke: Run, name: str, left: str, message: str
) -> None:
    path = Path(stopped.output) / name
    assert path.is_file()
    _truncate(path, left)
    ended = invoke("status", stopped.output)
    assert message in (ended.err if "is corrupt" in message else ended.out)
    assert ended.code == (1 if "is corrupt" in message else 0)
    assert "Internal error" not in ended.err


@pytest.mark.parametrize("left", [HALVES, EMPTY])
@pytest.mark.parametrize("name", ["recipe.json", "stages/warmup/done.json"])
def test_the_same_command_names_the_corrupt_file_and_says_to_remove_it(
    stopped: TrainingRecipe, invoke: Run, tmp_path: Path, name: str, left: str
) -> None:
    recipe = write_training(tmp_path / "recipe.json", stopped)
    _truncate(Path(stopped.output) / name, left)
    ended = invoke("train", recipe, f"output={stopped.output}", "--json")
    assert ended.code == 1 and ended.json["error"].count("remove it") == 1
    assert f"{stopped.output}/{name} is corrupt" in ended.err
    assert "Internal error" not in ended.err


def test_a_run_whose_records_are_all_corrupt_resumes_to_the_same_model(
    stopped: TrainingRecipe, undisturbed: TrainingRecipe, tmp_path: Path
) -> None:
    run = Path(stopped.output)
    home = run / STAGE
    for name in ("progress.json", "ended.json", "tracking.sent"):
        _truncate(home / name, EMPTY)
    _truncate(run / "tracking.sent", HALVES)
    _truncate(run / "mlflow.json", HALVES)
    (run / "stop").touch()
    (run / "stop").unlink()
    with (home / "starts.jsonl").open("a") as file:
        file.write('{"time": 17')
    journal = (home / "tracking.jsonl").read_bytes().splitlines(keepends=True)
    (corrupt,) = [
        number
        for number, line in enumerate(journal)
        if b'"step":20,' in line and b"loss/total" in line
    ]
    journal[corrupt] = journal[corrupt][:30] + b"\x00\xff" + journal[corrupt][40:]
    (home / "tracking.jsonl").write_bytes(b"".join(journal))

    with pytest.raises(FlowmapsrError, match=r"done\.json is corrupt"):
        _truncate(run / "stages" / "warmup" / "done.json", EMPTY)
        finished_stages(stopped)
    (run / "stages" / "warmup" / "done.json").unlink()
    _truncate(run / "recipe.json", HALVES)
    with pytest.raises(FlowmapsrError, match=r"recipe\.json is corrupt"):
        check_recipe(stopped)
    with pytest.raises(FlowmapsrError, match=r"recipe\.json is corrupt"):
        find_model(run)
    (run / "recipe.json").unlink()

    train(stopped, tmp_path)
    records = finished_stages(stopped)
    assert records is not None and [record.steps for record in records] == [60, 60]
    for stage in ("warmup", "distill"):
        assert same_weights(stopped, undisturbed, stage)
    starts = read_starts(StagePaths(run, "distill"))
    assert [start.step for start in starts] == [0, 50]
    assert str(starts[1].ended_before).startswith("unknown")
    losses = read_metrics(home)["loss/total"]
    assert sorted(set(losses.steps)) == [10, 30, 40, 50, 60]

    names = mlflow_names(run)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = client.get_metric_history(names.stages["distill"], "loss/total")
    assert {point.step for point in history} == set(losses.steps)
    sent = json.loads((home / "tracking.sent").read_bytes())
    assert sent["bytes"] == (home / "tracking.jsonl").stat().st_size
    assert json.loads((home / "progress.json").read_bytes())["step"] == 60

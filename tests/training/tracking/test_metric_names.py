"""The names of all metrics of a stage: dashboards and comparisons of runs depend on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.mlflow_runs import mlflow_names
from training.run_dir.paths import StagePaths
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import read_metrics
from training.tracking.summary.stage_table import start_table
from training.tracking.tracker import Tracker

LOSSES = {
    "warmup": {"loss/total", "loss/fm", "loss/weighting"},
    "distill": {"loss/total", "loss/fm", "loss/sd", "loss/perceptual", "loss/weighting"},
}
EVERY_STAGE = {
    *("optim/gradient_norm", "optim/learning_rate"),
    *("perf/images_per_second", "perf/data_wait_fraction", "perf/validation_fraction"),
    *("perf/memory_gb", "perf/tflops"),
    *("perf/checkpoint_seconds", "checkpoints/failed", "checkpoints/newest_step"),
    *("data/skipped_samples", "data/images_seen"),
}
COSTS = {
    *("cost/images_seen", "cost/worker_hours", "cost/restarts", "cost/data_wait_fraction"),
}
PER_HOST = "system/"
"""The load of each host."""


@pytest.mark.parametrize("stage", ["warmup", "distill"])
def test_a_stage_reports_these_metrics_and_no_others(
    undisturbed: TrainingRecipe, stage: str
) -> None:
    names = set(read_metrics(StagePaths(Path(undisturbed.output), stage).root))
    named = {name for name in names if not name.startswith(PER_HOST)}
    assert named == LOSSES[stage] | EVERY_STAGE and named != names


def test_the_seconds_of_a_start_are_a_table(undisturbed: TrainingRecipe) -> None:
    table = start_table(StagePaths(Path(undisturbed.output), "warmup"))
    (row,) = table.rows
    total, *phases = row[table.columns.index("seconds to first step") :]
    assert "first_step" in table.columns and len(phases) > 5 and isinstance(total, float)


def test_the_parent_run_has_the_curves_of_both_stages_over_one_step(
    undisturbed: TrainingRecipe,
) -> None:
    run = Path(undisturbed.output)
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    names = mlflow_names(run)
    parent = client.get_run(names.parent)
    curves = {
        *("optim/gradient_norm", "perf/validation_fraction"),
        *("perf/images_per_second", "perf/data_wait_fraction"),
    }
    losses = LOSSES["warmup"] | LOSSES["distill"]
    assert parent.data.metrics.keys() == losses | curves | COSTS
    for name in ("loss/fm", "perf/images_per_second", "cost/worker_hours"):
        history = client.get_metric_history(names.parent, name)
        assert [point.step for point in history] == list(range(10, 121, 10))
    pictures = [item.path for item in client.list_artifacts(names.parent, "images")]
    drawn = {path.split("+step+")[1].split("+")[0] for path in pictures if "photo_1" in path}
    assert drawn == {"0", "30", "60", "90", "120"}
    assert parent.data.metrics["cost/images_seen"] == 2 * 60 * 4
    assert parent.data.tags["role"] == "training"
    stage = client.get_run(names.stages["distill"])
    assert stage.data.tags["role"] == "stage"
    assert stage.info.run_name == f"{parent.info.run_name} · 2 distill"


def test_a_value_that_is_not_finite_leaves_the_others_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracker = Tracker(tmp_path / "run", experiment="tests", stage="warmup")
    tracker.metrics(1, {"loss/total": 0.5, "perf/tflops": float("nan")})
    assert tracker.close("FINISHED")
    found = read_metrics(StagePaths(tmp_path / "run", "warmup").root)
    assert list(found["loss/total"].values) == [0.5]

"""Curves, best and last values and costs of a whole training, as rank 0 writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datagen.records import to_json
from training.run_dir.paths import CURVES_JOURNAL, StagePaths
from training.run_dir.records import StageProgress, StageRecord, WorkerGroup
from training.run_dir.starts import record_start
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Picture
from training.tracking.journal import journals, read_metrics
from training.tracking.run_curves import RunCurves

GPUS = WorkerGroup(hosts=("a", "a"), devices=("H100", "H100"), on_gpus=True)
CPUS = WorkerGroup(hosts=("a",), devices=("CPU",), on_gpus=False)


def recipe(run: Path, **settings: Any) -> TrainingRecipe:
    stage = {"objective": {"kind": "flow_matching"}, "steps": 100}
    return TrainingRecipe.model_validate(
        {
            "manifest": "/set",
            "output": str(run),
            "stages": [{**stage, "name": name} for name in ("warmup", "distill")],
            **settings,
        }
    )


def started(of: TrainingRecipe, name: str, workers: WorkerGroup, *, hours: float) -> RunCurves:
    stage = StagePaths(Path(of.output), name)
    record_start(stage, workers, 0)
    return RunCurves(of, stage, workers, hours=hours)


def finish(of: TrainingRecipe, name: str, *, steps: int, images: int, hours: float) -> None:
    stage = StagePaths(Path(of.output), name)
    record = StageRecord(
        stage=name, steps=steps, images_seen=images, recipe_digest="", dataset_digest="", model="m"
    )
    progress = StageProgress(
        stage=name, step=steps, steps=100, images_per_second=1.0, headline="loss/fm",
        headline_value=1.0, updated=1.0, checkpoint_step=0, checkpoint_time=0, worker_hours=hours,
    )  # fmt: skip
    stage.progress.write_bytes(to_json(progress))
    stage.done.write_bytes(to_json(record))


def report(images: float, *, wait: float = 0.0, **losses: float) -> dict[str, float]:
    values = {"data/images_seen": images, "perf/data_wait_fraction": wait, "system/cpu": 1.0}
    return values | {f"loss/{name}": value for name, value in losses.items()}


def written(run: Path) -> dict[str, list[tuple[int, float]]]:
    found = read_metrics(run, name=CURVES_JOURNAL)
    return {name: list(zip(*series, strict=True)) for name, series in found.items()}


def test_steps_images_and_hours_count_on_through_the_stages(tmp_path: Path) -> None:
    of = recipe(tmp_path, hourly_price=3.0)
    warmup = started(of, "warmup", CPUS, hours=0.0)
    warmup.metrics(10, report(80, fm=2.0, wait=0.5), hours=1.0)
    finish(of, "warmup", steps=15, images=120, hours=2.0)  # ended early
    distill = started(of, "distill", GPUS, hours=0.0)
    distill.metrics(10, report(80, fm=1.0), hours=4.0)
    found = written(tmp_path)
    assert found["loss/fm"] == [(10, 2.0), (25, 1.0)] and "system/cpu" not in found
    assert found["cost/images_seen"] == [(10, 80.0), (25, 200.0)]
    assert found["cost/worker_hours"] == [(10, 1.0), (25, 6.0)]
    assert found["cost/price"] == [(10, 3.0), (25, 18.0)]
    assert found["cost/gpu_hours"] == [(25, 4.0)]  # the first stage was trained on CPUs
    # A stage whose folder was removed, to train it anew, begins where it did.
    again = started(of, "warmup", CPUS, hours=2.0)
    again.metrics(10, {"loss/fm": 2.0}, hours=2.0)
    assert written(tmp_path)["loss/fm"][-1] == (10, 2.0)
    # Half an hour of waiting in six hours, whatever the last interval was like.
    assert found["cost/data_wait_fraction"] == [(10, 0.5), (25, pytest.approx(0.5 / 6))]


def test_best_and_last_are_known_right_after_a_restart(tmp_path: Path) -> None:
    of = recipe(tmp_path)
    first = started(of, "warmup", CPUS, hours=0.0)
    for step, psnr, loss in ((0, 20.0, 1.0), (10, 27.0, 0.5), (20, 26.0, float("nan"))):
        first.metrics(step, {"val/psnr_x4_nfe1": psnr, "val/loss/fm": loss}, hours=1.0)
    second = started(of, "warmup", CPUS, hours=2.0)
    second.metrics(30, {"val/psnr_x4_nfe1": 25.0, "val/loss/fm": 0.75}, hours=3.0)
    second.metrics(40, report(1, wait=0.0), hours=4.0)
    found = written(tmp_path)
    assert [value for _, value in found["best/psnr_x4_nfe1"]] == [20.0, 27.0, 27.0, 27.0]
    assert [value for _, value in found["last/psnr_x4_nfe1"]] == [20.0, 27.0, 26.0, 25.0]
    assert [value for _, value in found["best/loss/fm"]] == [1.0, 0.5, 0.5, 0.5]
    assert found["val/loss/fm"][-1] == (30, 0.75)
    assert found["cost/restarts"] == [(40, 1.0)] and "cost/price" not in found


def test_only_pictures_that_compare_trainings_are_shown_over_all_stages(tmp_path: Path) -> None:
    of = recipe(tmp_path)
    started(of, "warmup", CPUS, hours=0.0)
    finish(of, "warmup", steps=100, images=800, hours=1.0)
    distill = started(of, "distill", CPUS, hours=0.0)
    for key in ("samples", "pictures/photo_1"):
        distill.picture(key, 50, f"/images/{key}.png")
    sent: list[Any] = []
    journals(tmp_path).pictures.send(sent.extend, run_id="run")
    assert sent == [Picture(key="pictures/photo_1", step=150, path="/images/pictures/photo_1.png")]

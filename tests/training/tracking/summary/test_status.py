"""Trainings side by side, from their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from datagen.records import to_json
from training.run_dir.paths import RECIPE, StagePaths
from training.run_dir.records import StageProgress, StageRecord, WorkerGroup
from training.run_dir.starts import Start, append_line
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Metrics
from training.tracking.journal import Journal
from training.tracking.summary.status import (
    SPEED,
    compare_runs,
    differing_settings,
    find_runs,
    run_status,
)

STAGE = {"objective": {"kind": "flow_matching"}, "steps": 100, "global_batch": 8}


def recipe(*names: str, stage: dict[str, Any] | None = None, **settings: Any) -> TrainingRecipe:
    stages = [{**STAGE, **(stage or {}), "name": name} for name in names or ("warmup",)]
    places = {"manifest": "/set", "output": "/run"}
    return TrainingRecipe.model_validate({**places, **settings, "stages": stages})


def write_run(folder: Path, of: TrainingRecipe) -> Path:
    folder.mkdir(parents=True)
    (folder / RECIPE).write_bytes(to_json(of))
    return folder


def write_progress(folder: Path, *, step: int, hours: float, on_gpus: bool = True) -> None:
    stage = StagePaths(folder, "warmup")
    stage.root.mkdir(parents=True)
    progress = StageProgress(
        stage="warmup", step=step, steps=100, images_per_second=9.0, headline="loss/fm",
        headline_value=0.25, updated=1.0, checkpoint_step=0, checkpoint_time=0, worker_hours=hours,
    )  # fmt: skip
    stage.progress.write_bytes(to_json(progress))
    workers = WorkerGroup(hosts=("a",), devices=("x",), on_gpus=on_gpus)
    append_line(stage.starts, Start(time=0.0, workers=workers, step=0))
    for at, speed in ((10, 4), (20, 8)):
        Journal(stage.root).append(Metrics(step=at, time_ms=1, values={SPEED: speed}))


def test_only_settings_that_differ_are_named_and_stages_by_their_names() -> None:
    found = differing_settings(
        {
            "/a": recipe("warmup", "distill", output="/a"),
            "/b": recipe("warmup", output="/b", seed=3, stage={"learning_rate": 1e-3}),
        }
    )
    assert found == {
        "stages": {"/a": "warmup, distill", "/b": "warmup"},
        "seed": {"/a": "0", "/b": "3"},
        "stages.warmup.learning_rate": {"/a": "4e-05", "/b": "0.001"},
    }


def test_a_setting_that_only_some_have_is_given_for_those() -> None:
    guided = {"kind": "self_distillation", "guidance": {"strength": [1, 2]}}
    one = recipe("warmup", stage={"objective": guided})
    found = differing_settings({"/a": one, "/b": recipe(), "/c": recipe()})
    assert found["stages.warmup.objective.guidance.strength"] == {"/a": "[1.0, 2.0]"}
    assert found["stages.warmup.objective.kind"]["/b"] == "flow_matching"
    assert differing_settings({"/b": recipe(), "/c": recipe()}) == {}


def test_a_stopped_and_a_finished_stage_have_headline_mean_speed_and_hours(tmp_path: Path) -> None:
    for name in ("stopped", "done"):
        write_progress(write_run(tmp_path / name, recipe()), step=40, hours=1.5)
    record = StageRecord(
        stage="warmup", steps=90, images_seen=720, recipe_digest="", dataset_digest="", model="m"
    )
    StagePaths(tmp_path / "done", "warmup").done.write_bytes(to_json(record))
    done, stopped = compare_runs(find_runs([str(tmp_path)])).runs
    for run, state, step in ((done, "done", 90), (stopped, "stopped", 40)):
        assert (run.current.state, run.step, run.worker_hours) == (state, step, 1.5)
        assert (run.current.headline, run.current.headline_value) == ("loss/fm", 0.25)
        assert (run.current.images_per_second, run.current.on_gpus) == (6.0, True)


def test_a_damaged_progress_of_a_finished_stage_hides_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe())
    write_progress(folder, step=100, hours=1.0)
    stage = StagePaths(folder, "warmup")
    record = StageRecord(
        stage="warmup", steps=100, images_seen=800, recipe_digest="", dataset_digest="", model="m"
    )
    stage.done.write_bytes(to_json(record))
    stage.progress.write_text("{}")
    found = run_status(folder)
    assert (found.done, found.step, found.worker_hours) == (True, 100, None)


def test_a_run_is_found_once_and_nothing_is_an_error(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "run", recipe())
    second = write_run(tmp_path / "b", recipe())
    assert find_runs([str(tmp_path), str(second), str(first)]) == (first, second)
    assert find_runs([str(tmp_path / "a")]) == (first,)
    with pytest.raises(FlowmapsrError, match="none holds no training run"):
        find_runs([str(first), str(tmp_path / "none")])


def test_a_run_that_cannot_be_read_is_left_out_unless_it_is_the_only_one(tmp_path: Path) -> None:
    good, bad = (write_run(tmp_path / name, recipe()) for name in ("good", "bad"))
    (bad / RECIPE).write_text("{")
    found = compare_runs([good, bad])
    assert [run.run for run in found.runs] == [str(good)]
    (left_out,) = found.left_out
    assert left_out.run == str(bad) and "recipe.json is corrupt" in left_out.reason
    assert found.settings == {}
    with pytest.raises(FlowmapsrError, match="is corrupt"):
        compare_runs([bad])

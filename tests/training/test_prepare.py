"""What makes a run's folder ready to train further: interrupted anywhere, and what it refuses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from datagen.io import storage
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import DISTILL, WARMUP, RunMaker
from training.checkpoints.records import COMMIT
from training.flowmap.initial import fetch_inputs
from training.prepare import prepare_run
from training.run_dir import further
from training.run_dir.further import aside, first_weights_of, on_old_weights
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageRecord, WorkerGroup
from training.run_dir.starts import FINISHED, record_end, record_start
from training.settings.recipe import TrainingRecipe
from training.tracking import journal
from training.tracking.tracker import Tracker
from training.weights.initialize import weights_path

WORKERS = WorkerGroup(hosts=("a",), devices=("cpu",), on_gpus=False)


def _finished(recipe: TrainingRecipe) -> Path:
    """A run whose stages have all steps, by what they would leave."""
    run = Path(recipe.output)
    prepare_run(recipe)
    for settings in recipe.stages:
        stage = StagePaths(run, settings.name)
        record_start(stage, WORKERS, 0, grew_from=first_weights_of(recipe, stage))
        stage.model.mkdir()
        (stage.model / "weights").write_text(stage.name)
        checkpoint = stage.checkpoints / f"step-{settings.steps:06d}" / COMMIT
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        tracker = Tracker(run, experiment="tests", stage=stage.name)
        assert tracker.close("FINISHED")
        record_end(stage, FINISHED)
        record = StageRecord(
            stage=stage.name, steps=settings.steps, images_seen=1, recipe_digest="",
            dataset_digest="", model="", ended_by="steps", checkpoint=stage.name,
        )  # fmt: skip
        stage.done.write_text(record.model_dump_json())
    return run


class _Kill(BaseException):
    """As a kill, which nothing catches."""


def _killed_at(number: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Makes the n-th change of a folder or file raise; returns the names of the changes."""
    made: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if len(made) == number:
                raise _Kill(name)
            made.append(name)
            return real(*arguments, **named)

        return call

    changes: list[tuple[Any, str]] = [
        *((Path, "rename"), (Path, "unlink"), (os, "link"), (shutil, "copytree")),
        *((storage, "write_bytes"), (journal, "append_lines_atomically"), (further, "append_line")),
    ]
    for owner, name in changes:
        patch.setattr(owner, name, watched(name, getattr(owner, name)))
    return made


@pytest.mark.parametrize("redo_later", [False, True])
def test_a_preparation_that_is_killed_anywhere_ends_the_same_when_it_is_run_again(
    run_recipe: RunMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redo_later: bool,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    template = _finished(run_recipe(tmp_path / "template", stages=[WARMUP, DISTILL]))
    for number in range(100):
        run = tmp_path / str(number)
        shutil.copytree(template, run)
        longer = run_recipe(run, stages=[{**WARMUP, "steps": 90}, DISTILL])
        with monkeypatch.context() as patch:
            made, is_done = _killed_at(number, patch), True
            try:
                prepare_run(longer, redo_later=redo_later)
            except _Kill:
                is_done = False
        prepare_run(longer, redo_later=redo_later)
        _assert_prepared(longer, mlflow_names(template).stages, redo_later=redo_later)
        if is_done:
            break
    assert is_done and number > 3, made


def _assert_prepared(recipe: TrainingRecipe, runs: dict[str, str], *, redo_later: bool) -> None:
    run = Path(recipe.output)
    warmup, distill = StagePaths(run, "warmup"), StagePaths(run, "distill")
    assert warmup.finished_record() is None and (warmup.model / "weights").is_file()
    assert f'"steps": {recipe.stages[0].steps}' in (run / "recipe.json").read_text()
    assert [later.stage for later in on_old_weights(recipe)] == ([] if redo_later else ["distill"])
    if not redo_later:
        assert distill.finished_record() is not None
        assert (distill.first_weights / "weights").read_text() == "warmup"
        return
    kept = StagePaths(run, "distill.1")
    assert kept.finished_record() is not None and not distill.root.exists()
    assert aside(distill).name == "distill.2"
    assert mlflow_names(run).stages == {"warmup": runs["warmup"], "distill.1": runs["distill"]}
    assert "warmup was trained further" in (kept.root / "tracking.jsonl").read_text()


def test_a_network_that_a_stage_freezes_stays_when_its_run_is_trained_further(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    """It is in no checkpoint of that stage."""
    source = _finished(run_recipe(tmp_path / "source", stages=[WARMUP, DISTILL]))
    model = StagePaths(source, "distill").model
    (model / "config.json").write_text("{}")
    gan = {**DISTILL, "name": "gan", "dynamic_weighting": False, "steps": 900, "adversarial": {}}
    run = tmp_path / "run"
    for place, kept in ((source, True), (model, True), (tmp_path / "other", False)):
        stages = [{**gan, "init_from": str(place)}]
        stage = StagePaths(run, "gan")
        stage.root.mkdir(parents=True)
        fetch_inputs(run_recipe(run, stages=stages), stage)
        assert stage.first_weights.is_dir() == kept
        expected = stage.first_weights if kept else place
        assert weights_path(str(place), stage) == expected
        if kept:
            (model / "weights").unlink()
            (model / "weights").write_text("trained further")
            assert (stage.first_weights / "weights").read_text() == "distill"
            (model / "weights").write_text("distill")
        shutil.rmtree(run)


def test_a_stage_without_checkpoints_is_not_begun_anew(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    run = _finished(run_recipe(tmp_path / "run", stages=[WARMUP]))
    stage = StagePaths(run, "warmup")
    shutil.rmtree(stage.checkpoints)
    with pytest.raises(FlowmapsrError, match=r"warmup\.steps: .* no checkpoint left in .*warmup"):
        prepare_run(run_recipe(run, stages=[{**WARMUP, "steps": 90}]))
    assert stage.finished_record() is not None


def test_a_copy_does_not_share_the_checkpoints_of_its_original(
    run_recipe: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    elsewhere = {"checkpoints": str(tmp_path / "elsewhere")}
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP]).model_copy(update=elsewhere)
    shutil.copytree(_finished(recipe), tmp_path / "copy")
    copy = recipe.model_copy(update={"output": str(tmp_path / "copy")})
    with pytest.raises(FlowmapsrError, match=r"checkpoints: .*copy is a copy of .*run, which has"):
        prepare_run(copy)
    prepare_run(copy.model_copy(update={"checkpoints": str(tmp_path / "own")}))

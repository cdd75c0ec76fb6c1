"""Steps of a stage that has begun: which others it may have, and what rests on its old weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from tests.support.tiny import DISTILL, WARMUP, RunMaker
from training.run_dir.further import (
    aside,
    checkpoints_of,
    first_weights_of,
    on_old_weights,
    set_aside,
)
from training.run_dir.paths import StagePaths
from training.run_dir.recipe_guard import check_recipe, stages_going_on, write_recipe
from training.run_dir.records import EndedBy, StageProgress, StageRecord, WorkerGroup
from training.run_dir.starts import FINISHED, record_end, record_start, restarts
from training.settings.recipe import TrainingRecipe
from training.tracking.summary.status import run_status
from training.tracking.tracker import reset_tracking
from training.weights.initialize import weights_path

WORKERS = WorkerGroup(hosts=("a",), devices=("cpu",), on_gpus=False)
COSINE = {"lr_final_fraction": 0.1}
EARLY = {"early_stopping": {"metric": "val/psnr_nfe1", "patience": 3}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _recipe(run_recipe: RunMaker, run: Path, **warmup: Any) -> TrainingRecipe:
    return run_recipe(run, stages=[{**WARMUP, **COSINE, **warmup}, DISTILL])


def _write(recipe: TrainingRecipe) -> None:
    check_recipe(recipe)
    write_recipe(recipe, on_replace=reset_tracking)


def _started(recipe: TrainingRecipe, name: str, step: int = 0) -> StagePaths:
    stage = StagePaths(Path(recipe.output), name)
    record_start(stage, WORKERS, step, grew_from=first_weights_of(recipe, stage))
    return stage


def _progress(stage: StagePaths, *, step: int, checkpoint: int) -> None:
    progress = StageProgress(
        stage=stage.name, step=step, steps=60, images_per_second=1.0, headline="loss/fm",
        headline_value=1.0, updated=1.0, checkpoint_step=checkpoint, checkpoint_time=1.0,
        worker_hours=1.0,
    )  # fmt: skip
    stage.progress.write_text(progress.model_dump_json())


def _finish(stage: StagePaths, *, steps: int, ended_by: EndedBy = "steps", digest: str) -> None:
    record = StageRecord(
        stage=stage.name, steps=steps, images_seen=1, recipe_digest="", dataset_digest="",
        model="", ended="took the steps", ended_by=ended_by, model_step=steps, checkpoint=digest,
    )  # fmt: skip
    stage.done.write_text(record.model_dump_json())
    record_end(stage, FINISHED)
    stage.model.mkdir(exist_ok=True)
    (stage.model / "weights").write_text(digest)
    _progress(stage, step=steps, checkpoint=steps)


@pytest.fixture
def finished(run_recipe: RunMaker, run: Path) -> TrainingRecipe:
    """Both stages, of 60 steps."""
    recipe = _recipe(run_recipe, run)
    _write(recipe)
    for name in ("warmup", "distill"):
        _finish(_started(recipe, name), steps=60, digest=f"{name} 60")
    return recipe


def test_a_finished_stage_with_more_steps_is_unfinished_and_keeps_its_model(
    finished: TrainingRecipe, run_recipe: RunMaker, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = _recipe(run_recipe, run, steps=90, learning_rate=2e-3)
    _write(longer)
    stage = StagePaths(run, "warmup")
    assert stage.finished_record() is None and (stage.model / "weights").read_text() == "warmup 60"
    # The closed form of 90 steps: at step 60, cos(60/90 pi) = -1/2 leaves a quarter of what falls.
    assert "'warmup' goes on from step 60 to 90" in caplog.text
    assert f"{2e-3 * (0.1 + 0.9 / 4):.4g} at first, 0.0002005 at the end" in caplog.text
    status = run_status(run).stages[0]
    assert (status.state, status.step, status.steps) == ("stopped", 60, 90)
    assert status.ended == "it was done with 60 steps, and has been given more since"
    assert run_status(run).stages[1].on_old_weights == "warmup at step 60"
    _started(longer, "warmup", 60)
    assert restarts(stage) == []


def test_steps_are_never_fewer_than_are_done(
    finished: TrainingRecipe, run_recipe: RunMaker, run: Path
) -> None:
    with pytest.raises(FlowmapsrError, match=r"stages\.warmup\.steps = 50 is less than the 60"):
        check_recipe(_recipe(run_recipe, run, steps=50))
    _write(_recipe(run_recipe, run, steps=90))
    _progress(StagePaths(run, "warmup"), step=75, checkpoint=70)
    with pytest.raises(FlowmapsrError, match=r"= 60 is less than the 70 .* give at least 70"):
        check_recipe(finished)
    check_recipe(_recipe(run_recipe, run, steps=70))


def test_other_settings_of_a_finished_stage_change_only_with_more_steps(
    finished: TrainingRecipe, run_recipe: RunMaker, run: Path
) -> None:
    with pytest.raises(FlowmapsrError, match=r"different: stages\.warmup\.learning_rate"):
        check_recipe(_recipe(run_recipe, run, learning_rate=2e-3))
    with pytest.raises(FlowmapsrError, match=r"different: stages\.warmup\.weight_decay"):
        check_recipe(_recipe(run_recipe, run, steps=90, weight_decay=0.5))


def test_a_stage_that_ended_early_needs_more_than_steps(run_recipe: RunMaker, run: Path) -> None:
    recipe = _recipe(run_recipe, run, **EARLY)
    _write(recipe)
    _finish(_started(recipe, "warmup"), steps=30, ended_by="early_stopping", digest="30")
    check_recipe(recipe)
    with pytest.raises(
        FlowmapsrError, match=r"took the steps.*repeat .*change stages\.warmup\.early_stopping to"
    ):
        check_recipe(_recipe(run_recipe, run, steps=90, **EARLY))
    more = _recipe(run_recipe, run, early_stopping={"metric": "val/psnr_nfe1", "patience": 9})
    assert [stage.name for stage in stages_going_on(more)] == ["warmup"]
    _write(more)
    assert StagePaths(run, "warmup").finished_record() is None


def test_later_stages_keep_their_first_weights_until_they_are_trained_anew(
    finished: TrainingRecipe, run_recipe: RunMaker, run: Path
) -> None:
    longer = _recipe(run_recipe, run, steps=90)
    assert on_old_weights(longer) == []
    _write(longer)
    warmup, distill = StagePaths(run, "warmup"), StagePaths(run, "distill")
    (later,) = on_old_weights(longer)
    assert str(later) == "distill rests on the old weights of warmup at step 60"
    _started(longer, "warmup", 60)
    (warmup.model / "weights").unlink()
    _finish(warmup, steps=90, digest="warmup 90")
    assert (distill.first_weights / "weights").read_text() == "warmup 60"
    assert weights_path("warmup", distill) == distill.first_weights
    assert first_weights_of(longer, distill) == later.grew_from
    assert on_old_weights(longer) == [later]
    assert checkpoints_of(longer, distill) == str(distill.checkpoints)

    kept = aside(distill)
    set_aside(distill, kept, later.grew_from)
    assert (kept.name, (kept.model / "weights").read_text()) == ("distill.1", "distill 60")
    assert on_old_weights(longer) == [] and aside(distill).name == "distill.2"
    elsewhere = longer.model_copy(update={"checkpoints": "s3://bucket/run"})
    assert checkpoints_of(elsewhere, warmup) == "s3://bucket/run/warmup"
    assert checkpoints_of(elsewhere, distill) == "s3://bucket/run/distill.2"
    _finish(_started(longer, "distill"), steps=60, digest="distill 60 anew")
    assert on_old_weights(longer) == []


def test_what_a_stage_with_the_same_model_has_for_others_is_not_old(
    finished: TrainingRecipe, run_recipe: RunMaker, run: Path
) -> None:
    """As of a best checkpoint that stays the best one, or a record that was removed."""
    _write(_recipe(run_recipe, run, steps=90))
    _finish(StagePaths(run, "warmup"), steps=90, digest="warmup 60")
    assert on_old_weights(_recipe(run_recipe, run, steps=90)) == []
    StagePaths(run, "warmup").done.unlink()
    assert on_old_weights(finished) == []

"""Validation in real runs: its values, the best checkpoint, early stopping, and what follows."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from datagen.build.in_process import build_in_process
from tests.support.eventually import eventually
from tests.support.launch import start_workers, train
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, made_once, write_photos
from training.run_dir.paths import StagePaths
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import read_metrics

METRIC = "val/psnr_nfe1"
# So high a rate that quality soon falls.
STAGE: dict[str, Any] = {
    **WARMUP,
    "learning_rate": 2e-2,
    "steps": 60,
    "checkpoint_every_steps": 4,
    "validate_every_steps": 4,
    "keep_checkpoints": 1,
    "keep_best": METRIC,
    "early_stopping": {"metric": METRIC, "patience": 3},
    "model_from": "best",
}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four samples of six photos, of which four are held out."""

    def make(folder: Path) -> None:
        recipe = dataset_recipe(write_photos(folder / "photos", 6), folder / "dataset")
        build_in_process(recipe.model_copy(update={"validation_fraction": 0.5}))

    return made_once(tmp_path_factory, "held-out", make) / "dataset"


def _recipe(run_recipe: RunMaker, held_out: Path, output: Path, **changes: Any) -> TrainingRecipe:
    second = {**WARMUP, "name": "second", "steps": 4, "validate_every_steps": 4}
    recipe = run_recipe(output, stages=[STAGE, second])
    return recipe.model_copy(update={"manifest": str(held_out), **changes})


@pytest.fixture(scope="module")
def stopped_early(
    run_recipe: RunMaker, held_out: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainingRecipe:
    folder = tmp_path_factory.mktemp("validation")
    recipe = _recipe(run_recipe, held_out, folder / "run")
    train(recipe, folder)
    return recipe


def _values(recipe: TrainingRecipe, stage: str = "warmup") -> dict[str, dict[int, float]]:
    """The held-out metrics of a stage by name and step."""
    found = read_metrics(StagePaths(Path(recipe.output), stage).root, prefix="val/")
    return {
        name: dict(zip(series.steps, series.values, strict=True)) for name, series in found.items()
    }


def test_quality_is_measured_at_the_start_at_every_interval_and_at_the_end(
    stopped_early: TrainingRecipe,
) -> None:
    values = _values(stopped_early)
    last = max(values[METRIC])
    assert list(values[METRIC]) == list(range(0, last + 1, 4))
    for group in ("", "_x1", "_x2", "_x4"):
        for method in ("nfe1", "nfe2", "nfe4"):
            for step, gain in values[f"val/gain{group}_{method}"].items():
                psnr, bicubic = (
                    values[f"val/psnr{group}_{name}"][step] for name in (method, "bicubic")
                )
                assert gain == pytest.approx(psnr - bicubic, abs=1e-9)
                assert 0 < values[f"val/ssim{group}_{method}"][step] <= 1
        assert len(set(values[f"val/psnr{group}_bicubic"].values())) == 1
    assert values["val/loss/fm"].keys() == values[METRIC].keys()
    table = json.loads(
        (StagePaths(Path(stopped_early.output), "warmup").root / "loss_over_time.json").read_text()
    )
    assert table["columns"] == ["t", "loss/fm", "loss/fm samples"]
    assert sum(row[2] for row in table["data"]) == 16


def test_a_stage_ends_early_and_its_model_is_the_best_from_which_the_next_one_starts(
    stopped_early: TrainingRecipe,
) -> None:
    values = _values(stopped_early)
    measured = {step: value for step, value in values[METRIC].items() if step}
    best, last = max(measured, key=lambda step: measured[step]), max(measured)
    assert last == best + 3 * 4 < STAGE["steps"]
    stage = StagePaths(Path(stopped_early.output), "warmup")
    kept = sorted(path.name for path in stage.checkpoints.glob("step-*"))
    assert kept == [f"step-{best:06d}", f"step-{last:06d}"]
    record = stage.finished_record()
    assert record is not None and record.steps == last
    assert record.ended == (
        f"stopped early at step {last} of {STAGE['steps']}: {METRIC} was best at step {best} "
        f"({measured[best]:.4g}), 3 of 3 validations without a better one"
    )
    config = json.loads((stage.model / "config.json").read_text())
    assert config["step"] == best
    assert config["chosen"] == f"best {METRIC}: {measured[best]:.6g}"
    # The next stage measures the same losses and pictures before its first step.
    following = _values(stopped_early, "second")
    for name in (METRIC, "val/loss/fm", "val/ssim_x4_nfe4"):
        assert following[name][0] == values[name][best]


def test_neither_the_number_of_workers_nor_how_weights_are_sharded_changes_a_value(
    run_recipe: RunMaker, held_out: Path, tmp_path: Path
) -> None:
    """Before the first step, as gradients of other groups differ in their last bits."""
    guided = {
        **WARMUP,
        "objective": {"kind": "self_distillation", "guidance": {"strength": [2, 2]}},
        "perceptual": {"kind": "charbonnier", "patch_size": 16},
        "steps": 1,
    }
    found = []
    for workers, zero_stage in ((1, 1), (3, 3)):
        folder = tmp_path / str(workers)
        folder.mkdir()
        recipe = run_recipe(folder / "run", stages=[{**guided, "zero_stage": zero_stage}])
        recipe = recipe.model_copy(update={"manifest": str(held_out), "workers": workers})
        train(recipe, folder)
        found.append({name: values[0] for name, values in _values(recipe).items()})
    assert found[0] == found[1]
    assert {"val/loss/fm", "val/loss/sd", "val/loss/perceptual", METRIC} <= found[0].keys()


def test_a_killed_run_measures_the_same_when_it_goes_on(
    run_recipe: RunMaker, held_out: Path, stopped_early: TrainingRecipe, tmp_path: Path
) -> None:
    recipe = _recipe(run_recipe, held_out, tmp_path / "run")
    process = start_workers(recipe, tmp_path)
    checkpoint = StagePaths(Path(recipe.output), "warmup").checkpoints / "step-000012"
    eventually((checkpoint / "trainer_state.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    train(recipe, tmp_path)
    for stage in ("warmup", "second"):
        assert _values(recipe, stage) == _values(stopped_early, stage)

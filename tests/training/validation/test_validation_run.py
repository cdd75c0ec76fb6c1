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
from tests.support.random_networks import save_random_weights
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, made_once, write_photos
from training.evaluation.metrics.weights import ALEXNET
from training.run_dir.paths import StagePaths
from training.settings.recipe import TrainingRecipe
from training.settings.validation import ValidationSettings
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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of LPIPS, random."""
    return save_random_weights(tmp_path_factory.mktemp("weights"), ALEXNET.file)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four samples of six photos, of which four are held out."""

    def make(folder: Path) -> None:
        recipe = dataset_recipe(write_photos(folder / "photos", 6), folder / "dataset")
        build_in_process(recipe.model_copy(update={"validation_fraction": 0.5}))

    return made_once(tmp_path_factory, "held-out", make) / "dataset"


def _recipe(
    run_recipe: RunMaker, held_out: Path, weights: Path, output: Path, **changes: Any
) -> TrainingRecipe:
    second = {**WARMUP, "name": "second", "steps": 4, "validate_every_steps": 4}
    more = ValidationSettings(
        metrics=("psnr_y", "lpips_alex", "niqe"), metric_weights=str(weights), every=2
    )
    recipe = run_recipe(output, stages=[STAGE, second])
    update = {"manifest": str(held_out), "validation": more, **changes}
    return recipe.model_copy(update=update)


@pytest.fixture(scope="module")
def stopped_early(
    run_recipe: RunMaker, held_out: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainingRecipe:
    folder = tmp_path_factory.mktemp("validation")
    recipe = _recipe(run_recipe, held_out, weights, folder / "run")
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


def test_metrics_of_the_recipe_are_measured_in_every_second_validation(
    stopped_early: TrainingRecipe,
) -> None:
    values = _values(stopped_early)
    psnr = values["val/psnr_y_nfe1"]
    last = max(values[METRIC])
    assert list(psnr) == [*range(0, last, 8), *([last] if last % 8 == 0 else [])]
    for group in ("", "_x1", "_x2", "_x4"):
        for method in ("nfe1", "nfe4", "bicubic"):
            luma, distance = (
                values[f"val/{metric}{group}_{method}"] for metric in ("psnr_y", "lpips_alex")
            )
            assert list(luma) == list(distance) == list(psnr)
            assert all(0 < one < 2 for one in distance.values())
    seconds = read_metrics(StagePaths(Path(stopped_early.output), "warmup").root, prefix="perf/")
    assert seconds["perf/validation_metrics_seconds"].steps == list(psnr)
    # Samples of 32 pixels have no NIQE.
    assert not any("niqe" in name for name in values)


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
    run_recipe: RunMaker, held_out: Path, weights: Path, tmp_path: Path
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
        more = ValidationSettings(metrics=("lpips_alex",), metric_weights=str(weights))
        update = {"manifest": str(held_out), "workers": workers, "validation": more}
        recipe = recipe.model_copy(update=update)
        train(recipe, folder)
        found.append({name: values[0] for name, values in _values(recipe).items()})
    assert found[0] == found[1]
    names = {"val/loss/fm", "val/loss/sd", "val/loss/perceptual", METRIC, "val/lpips_alex_nfe1"}
    assert names <= found[0].keys()


def test_a_killed_run_measures_the_same_when_it_goes_on(
    run_recipe: RunMaker,
    held_out: Path,
    weights: Path,
    stopped_early: TrainingRecipe,
    tmp_path: Path,
) -> None:
    recipe = _recipe(run_recipe, held_out, weights, tmp_path / "run")
    process = start_workers(recipe, tmp_path)
    checkpoint = StagePaths(Path(recipe.output), "warmup").checkpoints / "step-000012"
    eventually((checkpoint / "trainer_state.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    train(recipe, tmp_path)
    for stage in ("warmup", "second"):
        assert _values(recipe, stage) == _values(stopped_early, stage)

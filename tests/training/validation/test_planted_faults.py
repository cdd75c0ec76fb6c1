"""Validation sees what the loss of a training does not: each fault is planted in a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.shards import ShardSample, stored_latents, write_latents
from tests.support.launch import finish, start_workers
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, rewritten, write_photos
from training.tracking.journal import Series, read_metrics

STAGE: dict[str, Any] = {
    **WARMUP,
    "objective": {
        "kind": "flow_matching",
        "time_grid_levels": 0,
        "guidance": {"negative_fraction": 0.5, "strength": [1, 1]},
    },
    "steps": 50,
    "global_batch": 8,
    "micro_batch": 8,
    "learning_rate": 3e-3,
    "dynamic_weighting": False,
    "ema_decay": 0.8,
    "checkpoint_every_steps": 100,
    "validate_every_steps": 25,
}
LAST = -1
Metrics = dict[str, Series]


def _dataset(folder: Path, *, photos: int, fraction: float, **changes: Any) -> Path:
    recipe = dataset_recipe(write_photos(folder / "photos", photos), folder / "dataset")
    build_in_process(recipe.model_copy(update={"validation_fraction": fraction, **changes}))
    return folder / "dataset"


@pytest.fixture(scope="module")
def with_bright_negatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose negatives any network can tell from the originals."""
    folder = tmp_path_factory.mktemp("faults")

    def brighten(sample: ShardSample) -> ShardSample:
        latents = stored_latents(sample)
        bright = latents | {"neg": latents["hq"] + np.float16(0.3)}
        return replace(sample, latents=write_latents(bright))

    return rewritten(_dataset(folder, photos=40, fraction=0.2), folder / "bright", brighten)


def _trained(
    run_recipe: RunMaker, dataset: Path, folder: Path, module: str, **changes: Any
) -> Metrics:
    """The metrics of a run of one stage by a worker of `module`."""
    folder.mkdir()
    network = {"block_channels": [32, 64], "input_gain": True}
    recipe = run_recipe(folder / "run", stages=[{**STAGE, **changes}], **network)
    recipe = recipe.model_copy(update={"manifest": str(dataset), "workers": 1})
    finish(start_workers(recipe, folder, module=module))
    return read_metrics(folder / "run" / "stages" / "warmup")


@pytest.fixture(scope="module")
def sound(
    run_recipe: RunMaker, with_bright_negatives: Path, tmp_path_factory: pytest.TempPathFactory
) -> Metrics:
    folder = tmp_path_factory.mktemp("sound") / "run"
    return _trained(run_recipe, with_bright_negatives, folder, "training.run")


def test_an_average_of_weights_that_is_never_updated_shows(
    run_recipe: RunMaker, with_bright_negatives: Path, sound: Metrics, tmp_path: Path
) -> None:
    module = "tests.training.workers.forgotten_average"
    found = _trained(run_recipe, with_bright_negatives, tmp_path / "fault", module)
    assert found["loss/fm"] == sound["loss/fm"]
    assert len(set(found["val/loss/fm"].values)) == 1
    assert sound["val/loss/fm"].values[LAST] < 0.6 * sound["val/loss/fm"].values[0]


def test_prompts_that_are_exchanged_where_the_model_is_used_show(
    run_recipe: RunMaker, with_bright_negatives: Path, sound: Metrics, tmp_path: Path
) -> None:
    module = "tests.training.workers.swapped_guidance"
    found = _trained(run_recipe, with_bright_negatives, tmp_path / "fault", module)
    assert found["loss/fm"] == sound["loss/fm"]
    assert found["val/loss/fm"] == sound["val/loss/fm"]
    assert found["val/psnr_nfe1"].values[LAST] < sound["val/psnr_nfe1"].values[LAST] - 2


def test_overfitting_on_ten_photos_shows(run_recipe: RunMaker, tmp_path: Path) -> None:
    """Ten of forty photos are trained on."""
    dataset = _dataset(tmp_path, photos=40, fraction=0.75, samples_per_photo=1)
    unguided = {"kind": "flow_matching", "time_grid_levels": 2}
    found = _trained(
        run_recipe, dataset, tmp_path / "run", "training.run", objective=unguided, steps=75
    )
    trained, held_out = found["loss/fm"].values, found["val/loss/fm"].values
    assert trained[LAST] < 0.1 * trained[0]
    assert held_out[LAST] > held_out[0] and held_out[LAST] > 10 * trained[LAST]
    assert found["val/gain_nfe1"].values[LAST] < found["val/gain_nfe1"].values[0] - 1

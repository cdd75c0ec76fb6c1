"""ELIR through the real loop and engine: however the work is divided or interrupted, and what a
run leaves behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.errors import FlowmapsrError
from tests.support.eventually import eventually
from tests.support.launch import start_workers, train
from tests.support.tiny import STAGE, dataset_recipe, same_weights, write_photos
from training.elir.codec import dct_codec
from training.elir.network import build
from training.evaluation.evaluate import evaluate
from training.inference.upscaler import Upscaler
from training.monitoring.mfu import FlopCounter
from training.run_dir.paths import StagePaths
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import read_metrics

TERMS = {"loss/total", "loss/l2", "loss/consistency", "loss/velocity", "loss/mse"}
SHARE = "flow/past_segment_end"
MODEL = {
    "kind": "elir",
    "codec": {"kind": "dct4"},
    "width": 32,
    "coarse_growth": 4,
    "expand": 2,
}
ELIR: dict[str, Any] = {
    **STAGE,
    "name": "elir",
    "objective": {"kind": "latent_consistency", "time_step": 0.2, "beta": 0.1},
    "steps": 10,
    "global_batch": 6,
    "learning_rate": 1e-4,
    "dynamic_weighting": False,
    "degradation": "fresh",
    "ema_decay": 0.9,
    "checkpoint_every_steps": 5,
}


def recipe_of(
    dataset: Path, folder: Path, *, workers: int = 1, model: Any = None, **stage: Any
) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "manifest": str(dataset),
            "output": str(folder / "run"),
            "workers": workers,
            "seed": 3,
            "mlflow_experiment": "tests",
            "model": {**MODEL, **(model or {})},
            "stages": [{**ELIR, **stage}],
        }
    )


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without latents, which holds one photo out."""
    folder = tmp_path_factory.mktemp("pixels")
    asked = dataset_recipe(write_photos(folder / "photos", 3), folder / "dataset")
    fields = {"latents": (), "hq_pixels": "png", "validation_fraction": 0.4, "seed": 1}
    build_in_process(asked.model_copy(update=fields))
    return folder / "dataset"


@pytest.fixture(scope="module")
def alone(pixels: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRecipe:
    folder = tmp_path_factory.mktemp("alone")
    recipe = recipe_of(pixels, folder, micro_batch=6, zero_stage=0)
    train(recipe, folder)
    return recipe


@pytest.fixture(scope="module")
def divided(pixels: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRecipe:
    folder = tmp_path_factory.mktemp("divided")
    recipe = recipe_of(pixels, folder, workers=2, micro_batch=2, zero_stage=3)
    train(recipe, folder)
    return recipe


def stage_of(recipe: TrainingRecipe) -> StagePaths:
    return StagePaths(Path(recipe.output), "elir")


def test_losses_do_not_depend_on_workers_micro_batch_or_zero_stage(
    alone: TrainingRecipe, divided: TrainingRecipe
) -> None:
    one, other = (read_metrics(stage_of(recipe).root) for recipe in (alone, divided))
    for name in {*TERMS, SHARE}:
        for curve in (name, f"val/{name}"):
            expected = pytest.approx(one[curve].values, rel=1e-5, abs=1e-9)
            assert other[curve].values == expected, curve
    assert one["val/psnr_nfe3"].values == pytest.approx(other["val/psnr_nfe3"].values, abs=1e-3)


def test_a_killed_training_ends_with_the_same_weights_bit_for_bit(
    pixels: Path, divided: TrainingRecipe, tmp_path: Path
) -> None:
    recipe = recipe_of(pixels, tmp_path, workers=2, micro_batch=2, zero_stage=3)
    process = start_workers(recipe, tmp_path)
    saved = stage_of(recipe).checkpoints / "step-000005" / "trainer_state.json"
    eventually(saved.exists, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert not stage_of(recipe).done.exists()
    train(recipe, tmp_path)
    assert same_weights(recipe, divided, "elir")


def test_the_share_of_samples_past_their_segment_follows_from_the_times(
    alone: TrainingRecipe,
) -> None:
    """r = t + 0.2 passes a third at 0.6 of the times of the first two segments, and of the last
    one (which ends at 0.8) at no time."""
    values = read_metrics(stage_of(alone).root)[SHARE].values
    assert np.mean(values) == pytest.approx(0.4 / 0.8, abs=0.2)


def test_the_model_folder_holds_collapsed_weights_and_restores(
    alone: TrainingRecipe, tmp_path: Path
) -> None:
    weights = safetensors.torch.load_file(stage_of(alone).model / "model.safetensors")
    assert not [name for name in weights if ".wide." in name]
    assert {name.split(".")[0] for name in weights} == {"encoder", "coarse", "field", "decoder"}
    config = json.loads((stage_of(alone).model / "config.json").read_text())
    assert config["model"]["kind"] == "elir" and config["objective"]["segments"] == 3
    photos = write_photos(tmp_path / "photos", 1)
    settings = EvaluationSettings(photos=str(photos), scales=(1.0,), steps=(1, 3))
    rows = evaluate(alone.output, settings).rows
    assert [(row.method, row.steps) for row in rows] == [("bicubic", 0), ("elir", 1), ("elir", 3)]
    assert rows[2].parameters == sum(tensor.numel() for tensor in weights.values())
    field = build(32, 1, expand=None, codec=dct_codec(4)).field
    with FlopCounter() as counter:
        field(torch.zeros(1, 48, 64, 64), torch.zeros(1))
    assert rows[1].gflop and rows[2].gflop and rows[0].gflop is None
    assert rows[2].gflop - rows[1].gflop == pytest.approx(2 * counter.flops / 1e9)
    upscaler = Upscaler.from_pretrained(alone.output)
    image = np.asarray(Image.open(photos / "0.png"))[:50, :41]
    restored = upscaler.upscale(image, scale=1.5, steps=3)
    assert restored.shape == (75, 62, 3)
    assert np.array_equal(restored, upscaler.upscale(image, scale=1.5, steps=3))
    with pytest.raises(FlowmapsrError, match="tile=512: .* of kind elir, which restores in tiles"):
        Upscaler.from_pretrained(alone.output, tile=512)
    with pytest.raises(FlowmapsrError, match="backend=openvino: .* of kind elir, which PyTorch"):
        Upscaler.from_pretrained(alone.output, device="cpu", backend="openvino")
    with pytest.raises(FlowmapsrError, match="guidance=2: .* of kind elir, which has none"):
        Upscaler.from_pretrained(alone.output, guidance=2.0)
    pictures = sorted(path.name for path in stage_of(alone).root.glob("images/pictures-*"))
    assert pictures[0] == "pictures-photo_1-000000.png"

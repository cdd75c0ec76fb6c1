"""A tiny dataset and a tiny recipe, made once: what the training tests run on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datagen.build import build_dataset
from datagen.manifest import Manifest
from datagen.settings import BucketSettings, DatasetRecipe, DegradationSettings, PixelBudget
from training.settings import ModelSettings, TrainingRecipe

RecipeMaker = Callable[..., TrainingRecipe]
TINY_MODEL = {
    "block_channels": [16, 32],
    "layers_per_block": 1,
    "transformer_layers": [0, 0],
    "attention_heads": [2, 2],
    "norm_groups": 8,
    "time_channels": 16,
    "prompt_channels": 8,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples of 32x32 pixels from three generated photos, in three shards."""
    folder = tmp_path_factory.mktemp("training")
    photos = folder / "photos"
    photos.mkdir()
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(smooth).save(photos / f"{seed}.png")
    recipe = DatasetRecipe(
        sources=(str(photos),),
        output=str(folder / "dataset"),
        buckets=BucketSettings(budgets=(PixelBudget(side=32),), max_aspect_ratio=1.0),
        crop="native",
        variants=4,
        samples_per_shard=4,
        degradation=DegradationSettings(scale=(1, 4)),
    )
    build_dataset(recipe)
    return folder / "dataset"


@pytest.fixture
def manifest(dataset: Path) -> Manifest:
    from datagen.manifest import load_manifest

    return load_manifest(str(dataset))


@pytest.fixture
def tiny_model() -> ModelSettings:
    return ModelSettings.model_validate(TINY_MODEL)


@pytest.fixture
def recipe(dataset: Path, tmp_path: Path) -> RecipeMaker:
    """Two tiny stages; keyword arguments replace settings of both stages."""

    def make(
        *, workers: int = 2, output: Path = tmp_path / "run", **stage: object
    ) -> TrainingRecipe:
        common = {
            "steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "checkpoint_every": 2,
            **stage,
        }
        warmup = {"name": "warmup", "objective": {"kind": "flow_matching"}, **common}
        distill = {"name": "distill", "objective": {"kind": "self_distillation"}, **common}
        return TrainingRecipe.model_validate(
            {
                "manifest": str(dataset / "manifest.json"),
                "output": str(output),
                "workers": workers,
                "model": TINY_MODEL,
                "stages": [warmup, distill],
                "images_every": 2,
            }
        )

    return make


def torchrun(recipe_file: Path, *, workers: int = 2) -> list[str]:
    """The command line of a launch without Ray and Prefect."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={workers}", "-m", "training.run", str(recipe_file)]

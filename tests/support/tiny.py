"""A tiny dataset, tiny recipes and one undisturbed run, made once for training and pipelines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from filelock import FileLock
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.records import ShardRecord
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample
from datagen.degradation.settings import DegradationSettings
from datagen.records import to_json
from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget
from tests.support.launch import finish, start_torchrun
from tests.support.shards import write_shard
from training.settings.recipe import TrainingRecipe

RunMaker = Callable[..., TrainingRecipe]
MODEL = {
    "block_channels": [16, 32],
    "layers_per_block": 1,
    "transformer_layers": [0, 0],
    "attention_heads": [2, 2],
    "norm_groups": 8,
    "time_channels": 16,
    "prompt_channels": 8,
    "guidance_conditioning": False,
}
STAGE = {
    "steps": 60,
    "global_batch": 4,
    "micro_batch": 1,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "checkpoint_every_steps": 10,
    "validate_every_steps": 30,
}
WARMUP = {"name": "warmup", "objective": {"kind": "flow_matching"}, **STAGE}
DISTILL = {
    "name": "distill",
    "objective": {"kind": "self_distillation"},
    "perceptual": {"kind": "charbonnier", "patch_size": 16},
    **STAGE,
}


def write_photos(folder: Path, count: int) -> Path:
    """Smooth random pictures of 64x64 pixels."""
    folder.mkdir(parents=True)
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(smooth).save(folder / f"{seed}.png")
    return folder


def dataset_recipe(photos: Path, output: Path) -> DatasetRecipe:
    return DatasetRecipe(
        sources=(str(photos),),
        output=str(output),
        buckets=BucketSettings(budgets=(PixelBudget(side=32),), max_aspect_ratio=1.0),
        crop="native",
        samples_per_photo=4,
        samples_per_shard=4,
        degradation=DegradationSettings(scale=(1, 4)),
    )


def grow(dataset: Path, photos: Path, *, count: int = 5) -> Manifest:
    """Extends the tiny dataset, of three photos, to `count` photos, in place."""
    return build_in_process(dataset_recipe(write_photos(photos, count), dataset))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder made by the first test process that asks for it and read by all."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples of 32x32 pixels from three generated photos, in three shards."""

    def make(folder: Path) -> None:
        build_in_process(dataset_recipe(write_photos(folder / "photos", 3), folder / "dataset"))

    return made_once(tmp_path_factory, "tiny", make) / "dataset"


def rewritten(dataset: Path, copy: Path, change: Callable[[ShardSample], ShardSample]) -> Path:
    """A copy of the dataset whose samples are changed, with a manifest that agrees."""
    shutil.copytree(dataset, copy, ignore=shutil.ignore_patterns("manifests"))
    manifest = load_manifest(str(copy))
    shards = []
    for record in manifest.shards:
        path = str(copy / record.path)
        written = write_shard(path, [change(sample) for sample in read_shard(path)])
        shards.append(record.model_copy(update=vars(written)))
    changed = manifest.model_copy(update={"shards": tuple(shards)})
    (copy / "manifest.json").write_bytes(to_json(changed))
    return copy


def with_shards(manifest: Manifest, **sizes: int) -> Manifest:
    """The manifest with training shards of the given sizes: `{"<bucket>_<number>": samples}`."""
    shards = tuple(
        ShardRecord(
            path=name,
            sha256="",
            bytes=1,
            num_samples=size,
            bucket=name.split("_")[0],
            split="train",
        )
        for name, size in sizes.items()
    )
    return manifest.model_copy(update={"shards": shards})


@pytest.fixture(scope="session")
def run_recipe(dataset: Path) -> RunMaker:
    """A recipe for two workers on the tiny dataset: `run_recipe(output, stages=[...])`; words after
    these are the model's."""

    def make(output: Path, *, stages: list[dict[str, Any]], **model: Any) -> TrainingRecipe:
        return TrainingRecipe.model_validate(
            {
                "manifest": str(dataset / "manifest.json"),
                "output": str(output),
                "workers": 2,
                "seed": 3,
                "mlflow_experiment": "tests",
                "model": {**MODEL, **model},
                "stages": stages,
            }
        )

    return make


@pytest.fixture(scope="session")
def undisturbed(run_recipe: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> TrainingRecipe:
    """A finished run of both stages with two workers under `torchrun`; only to be read."""

    def recipe_in(folder: Path) -> TrainingRecipe:
        return run_recipe(folder / "run", stages=[WARMUP, DISTILL])

    folder = made_once(
        tmp_path_factory,
        "undisturbed",
        lambda folder: finish(start_torchrun(recipe_in(folder), folder)),
    )
    return recipe_in(folder)


def weights(recipe: TrainingRecipe, stage: str) -> dict[str, torch.Tensor]:
    """The weights of a finished stage."""
    path = Path(recipe.output) / "stages" / stage / "model" / "model.safetensors"
    return safetensors.torch.load_file(path)


def same_weights(one: TrainingRecipe, other: TrainingRecipe, stage: str) -> bool:
    """Whether two runs made bit-identical models."""
    mine, theirs = weights(one, stage), weights(other, stage)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)

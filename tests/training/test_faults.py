"""Datasets that a stage cannot train on: what is said, what is saved, and what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from datagen.errors import FlowmapsrError
from datagen.manifest import Manifest, load_manifest, to_json
from datagen.shards import Latents, ShardSample, read_shard, write_shard
from tests.tiny import WARMUP, RunMaker, start_torchrun
from training.loader import fixed_batch
from training.run_folder import StageFolder
from training.schedule import Position, Schedule
from training.settings import TrainingRecipe
from training.stages import StageWorker


def _rewritten(dataset: Path, copy: Path, change: Callable[[ShardSample], bytes]) -> Path:
    """A copy of the dataset whose latents are changed, with a manifest that agrees."""
    shutil.copytree(dataset, copy)
    manifest = load_manifest(str(copy))
    shards = []
    for record in manifest.shards:
        path = str(copy / record.path)
        samples = [
            ShardSample(**{**vars(sample), "latents": change(sample)})
            for sample in read_shard(path)
        ]
        shards.append(record.model_copy(update=vars(write_shard(path, samples))))
    changed = manifest.model_copy(update={"shards": tuple(shards)})
    (copy / "manifest.json").write_bytes(to_json(changed))
    return copy


def _key_of_step(dataset: Path, recipe: TrainingRecipe, step: int) -> str:
    """A sample that is read at a step and not before."""
    manifest: Manifest = load_manifest(str(dataset))
    schedule = Schedule(
        manifest,
        global_batch=recipe.stages[0].global_batch,
        seed=recipe.seed,
        shuffle_shards=recipe.shuffle_shards,
        split="train",
    )
    position = Position()
    for _ in range(step + 1):
        places, position = schedule.global_batch_at(position)
    place = places[0]
    return read_shard(str(dataset / place.shard.path))[place.index].key


def test_a_loss_that_is_not_finite_stops_with_the_keys_saved_and_the_checkpoint_kept(
    dataset: Path, run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "checkpoint_every": 1}])
    poisoned = _key_of_step(dataset, recipe, step=2)

    def poison(sample: ShardSample) -> bytes:
        latents = Latents.from_bytes(sample.latents)
        lq = np.full_like(latents.lq, np.nan) if sample.key == poisoned else latents.lq
        return Latents(hq=latents.hq, lq=lq, neg=latents.neg).to_bytes()

    copy = _rewritten(dataset, tmp_path / "dataset", poison)
    recipe = recipe.model_copy(update={"manifest": str(copy)})
    process = start_torchrun(recipe, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    stage = Path(recipe.output) / "stages" / "warmup"
    assert "the loss is not finite at step 2" in output and "not_finite.json" in output
    saved = json.loads((stage / "not_finite.json").read_text())
    assert saved["step"] == 2
    assert poisoned in saved["keys"] and len(saved["keys"]) == 4  # of both workers
    newest = sorted((stage / "checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-000002"
    (weights,) = newest.glob("mp_rank_00_model_states.pt")
    module = torch.load(weights, weights_only=False)["module"]
    assert all(bool(tensor.isfinite().all()) for tensor in module.values())


@pytest.fixture
def without_negatives(dataset: Path, tmp_path: Path) -> Path:
    def drop(sample: ShardSample) -> bytes:
        latents = Latents.from_bytes(sample.latents)
        return safetensors.numpy.save({"hq": latents.hq, "lq": latents.lq})

    return _rewritten(dataset, tmp_path / "dataset", drop)


def test_guidance_without_negatives_is_refused_before_any_stage_trains(
    without_negatives: Path, run_recipe: RunMaker, tmp_path: Path
) -> None:
    guided = {
        **WARMUP,
        "name": "guidance",
        "objective": {"kind": "flow_matching", "guidance": {"strength": [2, 2]}},
    }
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, guided])
    recipe = recipe.model_copy(update={"manifest": str(without_negatives)})
    with pytest.raises(FlowmapsrError, match=r"guidance needs negatives.*leave guidance out"):
        StageWorker(recipe, StageFolder(Path(recipe.output), "warmup"))


def test_what_needs_no_negatives_reads_such_a_dataset(without_negatives: Path) -> None:
    batch = fixed_batch(str(without_negatives), load_manifest(str(without_negatives)), 2)
    assert batch.neg is None and batch.to(torch.device("cpu")).neg is None
    assert batch.hq.shape == batch.lq.shape

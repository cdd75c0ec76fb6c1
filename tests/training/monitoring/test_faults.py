"""Training that cannot continue: bad losses, unusable samples, full GPUs, failed checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from mlflow import MlflowClient

from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, stored_latents, write_latents
from datagen.errors import FlowmapsrError
from tests.support.launch import start_workers
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import WARMUP, RunMaker, rewritten
from training.checkpoints.reader import read_commit
from training.data.bucket_mix import bucket_shares
from training.data.loader import Batch
from training.data.planned import Position
from training.data.schedule import Schedule
from training.monitoring.loss_guard import FIRST_STEPS
from training.monitoring.out_of_memory import explain_out_of_memory
from training.run_dir.paths import StagePaths
from training.run_dir.starts import end_reason, read_starts
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings


def _keys_of_step(dataset: Path, recipe: TrainingRecipe, step: int) -> list[str]:
    """The samples of a step, in the order of its global batch."""
    manifest: Manifest = load_manifest(str(dataset))
    schedule = Schedule(
        [manifest],
        bucket_shares(recipe.stages[0], [manifest]),
        seed=recipe.seed,
        shuffle_window_shards=recipe.shuffle_window_shards,
        split="train",
    )
    planned = schedule.step_at(Position())
    for _ in range(step):
        planned = schedule.step_at(planned.position)
    shards = {record.path: read_shard(str(dataset / record.path)) for record in manifest.shards}
    locations = [schedule.location(*sample) for sample in planned.samples]
    return [shards[one.shard.path][one.index].key for one in locations]


def _stage(recipe: TrainingRecipe) -> StagePaths:
    return StagePaths(Path(recipe.output), "warmup")


def test_a_loss_that_is_not_finite_stops_with_the_keys_saved_and_the_checkpoint_kept(
    dataset: Path, run_recipe: RunMaker, tmp_path: Path
) -> None:
    """Weights that one update has made huge give no finite loss at the next step."""
    stage = {**WARMUP, "checkpoint_every_steps": 1, "learning_rate": 1e20}
    recipe = run_recipe(tmp_path / "run", stages=[stage])
    process = start_workers(recipe, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "the loss is not finite at step 1" in output and "bad_step.json" in output
    saved = json.loads(_stage(recipe).bad_step.read_text())
    assert saved["step"] == 1
    assert sorted(saved["keys"]) == sorted(_keys_of_step(dataset, recipe, 1))  # of both workers
    newest = sorted(_stage(recipe).checkpoints.glob("step-*"))[-1]
    assert newest.name == "step-000001"
    files = read_commit(str(newest)).files
    assert len(files) == 2  # one of each worker
    for file in files:
        tensors = safetensors.torch.load_file(newest / file.name)
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_samples_that_cannot_be_used_are_skipped_and_listed_until_they_are_too_many(
    dataset: Path, run_recipe: RunMaker, tmp_path: Path
) -> None:
    """One of twelve is below the limit, the second one above it."""
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "checkpoint_every_steps": 1}])
    first = _keys_of_step(dataset, recipe, 0)[1]  # the second worker's
    second = _keys_of_step(dataset, recipe, 2)[0]

    def spoil(sample: ShardSample) -> ShardSample:
        latents = stored_latents(sample)
        if sample.key == first:
            latents["hq"] = np.full_like(latents["hq"], np.nan)
        if sample.key == second:
            latents["lq"] = latents["lq"][:, :2]
        return replace(sample, latents=write_latents(latents))

    copy = rewritten(dataset, tmp_path / "dataset", spoil)
    recipe = recipe.model_copy(update={"manifest": str(copy), "max_bad_sample_fraction": 0.1})
    process = start_workers(recipe, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert (
        "2 of 12 training samples cannot be used, but max_bad_sample_fraction allows 0.1" in output
    )
    assert f"sample {second} of shards/32x32/train-00000" in output
    listed = [json.loads(line) for line in _stage(recipe).skipped.open()]
    assert [(one["key"], one["samples"]) for one in listed] == [(first, 1), (second, 1)]
    assert "hq holds values that are not finite" in listed[0]["reason"]
    assert "lq is F16 [192, 2, 4]" in listed[1]["reason"]
    checkpoints = sorted(_stage(recipe).checkpoints.glob("step-*"))
    assert [one.name for one in checkpoints] == ["step-000001", "step-000002"]
    assert read_commit(str(checkpoints[-1])).state.images_seen == 8


def test_an_outlier_in_the_first_step_stops_training(
    dataset: Path, run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "checkpoint_every_steps": 1}])
    outlier = _keys_of_step(dataset, recipe, 0)[0]

    def spoil(sample: ShardSample) -> ShardSample:
        if sample.key != outlier:
            return sample
        latents = stored_latents(sample)
        wrong = latents | {"hq": np.full_like(latents["hq"], 60_000.0)}
        return replace(sample, latents=write_latents(wrong))

    copy = rewritten(dataset, tmp_path / "dataset", spoil)
    _stage(recipe).bad_step.mkdir(parents=True)  # so that it cannot be written
    process = start_workers(recipe.model_copy(update={"manifest": str(copy)}), tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "more than max_loss_growth = 1000 times the " in output and "at step 0" in output
    assert "bad_step.json cannot be written" in output
    assert "samples of that step" not in output and "Start again with the same" in output
    assert "checkpoint is kept" not in output
    assert not list(_stage(recipe).checkpoints.glob("step-*"))


def test_a_diverging_loss_stops_training_too(run_recipe: RunMaker, tmp_path: Path) -> None:
    """At such a learning rate the error is soon more than three times the usual one."""
    limit = {"checkpoint_every_steps": 1, "max_loss_growth": 3.2}
    stage = {**WARMUP, **limit, "learning_rate": 0.03}
    recipe = run_recipe(tmp_path / "run", stages=[stage]).model_copy(update={"workers": 1})
    process = start_workers(recipe, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "more than max_loss_growth = 3.2 times the " in output
    assert "The last checkpoint is kept. Continue from it" in output
    saved = json.loads(_stage(recipe).bad_step.read_text())
    assert 0 < saved["step"] < FIRST_STEPS and "squared error" in saved["problem"]
    assert len(saved["keys"]) == 4
    newest = sorted(_stage(recipe).checkpoints.glob("step-*"))[-1]
    assert newest.name == f"step-{saved['step']:06d}"
    assert "max_loss_growth" in end_reason(_stage(recipe))

    _stage(recipe).bad_step.unlink()
    lower = {**stage, "learning_rate": 1e-9}
    stages = run_recipe(tmp_path / "run", stages=[lower]).stages
    process = start_workers(recipe.model_copy(update={"stages": stages}), tmp_path)
    output, _ = process.communicate(timeout=200)
    assert "stages.warmup.learning_rate was 0.03, is 1e-09" in output
    assert [one.step for one in read_starts(_stage(recipe))] == [0, saved["step"]]
    again = json.loads(_stage(recipe).bad_step.read_text())["step"]
    assert again == saved["step"], "the earlier errors were not restored"


def test_out_of_memory_ends_the_run_with_the_cause_and_the_fixes(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stage = {**WARMUP, "micro_batch": 4}
    recipe = run_recipe(tmp_path / "run", stages=[stage | {"global_batch": 8}])
    recipe = recipe.model_copy(update={"workers": 1})
    process = start_workers(recipe, tmp_path, module="tests.training.workers.full_memory")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and not _stage(recipe).done.exists()
    (message,) = [line for line in output.splitlines() if "PyTorch reports" in line]
    assert "'warmup': the GPU's memory is too small for a micro batch of 4 samples" in message
    assert "with latents of 4x4. To continue, repeat" in message
    assert "with a lower stages.warmup.micro_batch, or stages.warmup.gradient_ch" in message
    assert "Tried to allocate 2.00 GiB" in message
    assert "too small for a micro batch" in end_reason(_stage(recipe))


@pytest.mark.parametrize(
    ("changes", "samples", "words"),
    [
        (
            {},
            8,
            "8 samples with latents of 8x6.*with a lower stages.warmup.micro_batch, or "
            "stages.warmup.gradient_checkpointing=true, or stages.warmup.offload=optimizer, or "
            "with several workers a stages.warmup.zero_stage above [0-9]. PyTorch",
        ),
        (
            {"gradient_checkpointing": True},
            1,
            r"1 sample .*command with stages.warmup.offload=.*warmup.zero_stage above .\. P",
        ),
        (
            {"offload": "optimizer", "zero_stage": 3},
            0,
            r"network and optimizer\. Use a GPU with",
        ),
        ({}, 0, r"command with stages.warmup.offload=optimizer, or with .* above .\. PyTorch"),
    ],
)
def test_out_of_memory_recommends_only_settings_that_help(
    changes: dict[str, Any], samples: int, words: str
) -> None:
    settings = StageSettings.model_validate({**WARMUP, **changes})
    latents = torch.zeros(max(samples, 1), 4, 8, 6)
    batch = Batch(tuple(map(str, range(samples))), {"hq": latents, "lq": latents}, Position())
    with (
        pytest.raises(FlowmapsrError, match=words),
        explain_out_of_memory(settings, batch if samples else None),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_checkpoint_that_cannot_be_written_is_reported_to_mlflow(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stage = {**WARMUP, "steps": 30}
    recipe = run_recipe(tmp_path / "run", stages=[stage]).model_copy(update={"workers": 1})
    process = start_workers(recipe, tmp_path, module="tests.training.workers.failing_checkpoint")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    names = mlflow_names(recipe.output)
    child = client.get_run(names.stages["warmup"])
    assert child.info.status == "FINISHED"
    message = child.data.tags["last_failed_checkpoint"]
    assert "step 20 could not be written" in message and "step-000020" in message
    history = {
        name: [point.value for point in client.get_metric_history(child.info.run_id, name)]
        for name in ("checkpoints/failed", "checkpoints/newest_step")
    }
    assert history["checkpoints/failed"] == [0, 0, 1]
    assert history["checkpoints/newest_step"][-1] == 30
    assert child.data.metrics["perf/checkpoint_seconds"] > 0

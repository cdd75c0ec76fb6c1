"""Recipes that do not fit their dataset are refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from datagen.dataset.manifest import open_dataset
from datagen.errors import FlowmapsrError
from tests.support.launch import start_workers
from tests.support.tiny import DISTILL, WARMUP, RunMaker
from training.flowmap.network import FlowMapNet
from training.flowmap.system import check_lora
from training.preflight import check_run
from training.run_dir.paths import StagePaths
from training.run_dir.recipe_guard import write_recipe
from training.run_dir.records import StageRecord
from training.settings.recipe import TrainingRecipe
from training.tracking.tracker import reset_tracking

DISCRIMINATOR = {"channels": [8, 8], "strides": [1, 1, 1], "norm_groups": 4, "warmup_steps": 2}


def _stages(*, targets: list[str], discriminator: dict[str, Any]) -> list[dict[str, Any]]:
    adversarial = {"lora": {"target_modules": targets}, "discriminator": discriminator}
    gan = {**DISTILL, "name": "gan", "dynamic_weighting": False, "adversarial": adversarial}
    return [WARMUP, DISTILL, gan]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("conv3", "'conv3' is no linear or convolutional layer.*near it: conv"),
        ("to_q", "'to_q' is no linear or convolutional layer.*choose from conv, conv1"),
        ("resnets", "'resnets' is no linear or convolutional layer"),
    ],
)
def test_lora_names_that_match_nothing_are_refused_with_the_near_ones(
    run_recipe: RunMaker, tmp_path: Path, target: str, message: str
) -> None:
    stages = _stages(targets=["conv1", target], discriminator=DISCRIMINATOR)
    recipe = run_recipe(tmp_path / "run", stages=stages)
    with pytest.raises(FlowmapsrError, match=message):
        check_lora(recipe, FlowMapNet(recipe.model, latent_channels=192))


def test_latents_that_leave_no_patch_are_refused_with_the_setting(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = _stages(targets=["conv1"], discriminator=DISCRIMINATOR)
    check_run(run_recipe(tmp_path / "run", stages=stages))
    stages = _stages(targets=["conv1"], discriminator={**DISCRIMINATOR, "strides": [2, 1, 1]})
    with pytest.raises(
        FlowmapsrError, match=r"strides \[2, 1, 1\].*32x32, whose shorter side is 4"
    ):
        check_run(run_recipe(tmp_path / "run", stages=stages))


@pytest.mark.parametrize("field", ["init_from", "perceptual"])
def test_a_file_that_holds_no_weights_is_refused_before_any_server_starts(
    run_recipe: RunMaker, tmp_path: Path, field: str
) -> None:
    pointer = tmp_path / "unet.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    value = {"kind": "lpips", "weights": str(pointer)} if field == "perceptual" else str(pointer)
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, {**DISTILL, field: value}])
    with pytest.raises(FlowmapsrError, match=rf"stage 'distill': {field}.*is a Git LFS pointer"):
        check_run(recipe)


def test_a_run_continues_with_the_same_dataset_at_another_address_only(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, DISTILL])
    write_recipe(recipe, on_replace=reset_tracking)
    digest = open_dataset(recipe.manifest).manifest.digest
    home = StagePaths(tmp_path / "run", "warmup").root
    home.mkdir(parents=True)
    record = StageRecord(
        stage="warmup", steps=1, images_seen=1, recipe_digest="", dataset_digest=digest, model=""
    )
    (home / "done.json").write_text(record.model_dump_json())
    shutil.copytree(Path(recipe.manifest).parent, tmp_path / "moved")
    moved = {"manifest": str(tmp_path / "moved"), "validation_samples": 7, "mlflow_experiment": "b"}
    moved_recipe = recipe.model_copy(update=moved)
    assert [one.digest for one in check_run(moved_recipe).states] == [digest]
    write_recipe(moved_recipe, on_replace=reset_tracking)
    assert [one.digest for one in check_run(recipe).states] == [digest]
    other = record.model_copy(update={"dataset_digest": "another"})
    (home / "done.json").write_text(other.model_dump_json())
    with pytest.raises(FlowmapsrError, match=r"manifest .* another one now.*'distill'.*Put that"):
        check_run(recipe)


def test_batches_that_workers_fill_in_part_only_are_warned_of(
    run_recipe: RunMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = [{**WARMUP, "global_batch": 8, "micro_batch": 2}]
    recipe = run_recipe(tmp_path / "run", stages=stages)
    check_run(recipe)
    assert caplog.text == ""
    check_run(recipe.model_copy(update={"workers": 3}))
    assert "global_batch 8 in micro batches of 2 on 3 workers fills 67 %" in caplog.text


def test_latents_that_the_network_cannot_halve_are_refused(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    four = {"block_channels": [8] * 4, "transformer_layers": [0] * 4, "attention_heads": [1] * 4}
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP], **four)
    with pytest.raises(FlowmapsrError, match=r"bucket 32x32: .*4x4 .*multiples of 8 .*step=64"):
        check_run(recipe)


def test_a_step_larger_than_a_bucket_is_warned_of_with_the_copies(
    run_recipe: RunMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "global_batch": 30}])
    for _ in range(2):  # as `flowmapsr train` does: early, and when it holds the run
        check_run(recipe)
    assert caplog.text.count("32x32 has 12, so global_batch 30 has up to 3 copies of each") == 1


def test_a_single_sample_is_warned_of(
    dataset: Path, run_recipe: RunMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(dataset, alone)
    manifest = open_dataset(str(dataset)).manifest
    shard = next(one for one in manifest.shards if one.split == "train")
    one = manifest.model_copy(update={"shards": (shard.model_copy(update={"num_samples": 1}),)})
    (alone / "manifest.json").write_text(one.model_dump_json())
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    stages = (recipe.stages[0].model_copy(update={"global_batch": 1}),)
    single = {"manifest": str(alone), "workers": 1, "stages": stages}
    check_run(recipe.model_copy(update=single))
    assert "stage 'warmup' trains on a single sample" in caplog.text


def test_missing_sources_are_named_unless_their_stage_is_finished(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = [{**WARMUP, "init_from": str(tmp_path / "gone")}]
    recipe = run_recipe(tmp_path / "run", stages=stages)
    with pytest.raises(FlowmapsrError, match=r"stage 'warmup': init_from: there is no .*gone"):
        check_run(recipe)
    done = tmp_path / "run" / "stages" / "warmup" / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text(
        '{"stage": "warmup", "steps": 1, "images_seen": 1, "recipe_digest": "",'
        ' "dataset_digest": "", "model": "stages/warmup/model"}'
    )
    check_run(recipe)


def test_validating_on_all_of_nothing_is_refused(run_recipe: RunMaker, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    with pytest.raises(FlowmapsrError, match="validation_samples=all.*validation_fraction=0.02"):
        check_run(recipe.model_copy(update={"validation_samples": "all"}))


def test_a_missing_folder_of_text_encoders_is_named(run_recipe: RunMaker, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    prompts = {"kind": "text_encoders", "source": "./nowhere"}
    recipe = type(recipe).model_validate({**recipe.model_dump(), "prompts": prompts})
    with pytest.raises(FlowmapsrError, match=r"prompts\.source: there is no \./nowhere"):
        check_run(recipe)


def test_a_run_that_cannot_finish_does_not_start_and_its_recipe_can_be_corrected(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wrong = _stages(targets=["nothing"], discriminator=DISCRIMINATOR)
    trained, said = _trained(run_recipe(run, stages=wrong), tmp_path)
    assert not trained and "'nothing' is no linear" in said
    assert not list(run.glob("stages/*/checkpoints"))
    first = json.loads((run / "mlflow.json").read_text())["parent"]

    right = run_recipe(run, stages=_stages(targets=["conv1"], discriminator=DISCRIMINATOR)[:1])
    trained, said = _trained(right, tmp_path)
    assert trained, said
    second = json.loads((run / "mlflow.json").read_text())["parent"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(first).info.status == "FAILED"
    assert client.get_run(second).info.status == "FINISHED"


def _trained(recipe: TrainingRecipe, folder: Path) -> tuple[bool, str]:
    """Whether the recipe could be trained, and the output."""
    process = start_workers(recipe, folder)
    said, _ = process.communicate()
    return process.returncode == 0, said

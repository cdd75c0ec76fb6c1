"""Where a stage's first weights come from: what is loaded, new and left over; what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL

from datagen.errors import FlowmapsrError
from tests.support.foreign_weights import (
    ATTENDING,
    CHANNELS,
    check_sdxl,
    initial_in,
    names_of,
    recipe_from,
    save_flow_map,
    sdxl_name,
    sdxl_unet,
)
from tests.support.small_disk import DiskMaker
from training.flowmap.initial import initial_network
from training.flowmap.prompts import stand_in
from training.run_dir.paths import StagePaths


def test_without_a_source_the_weights_are_random(tmp_path: Path) -> None:
    initial = initial_in(tmp_path, None)
    assert initial.report is None
    assert torch.equal(initial.prompts.embeddings, stand_in(8).embeddings)


def test_a_model_folder_gives_everything_and_its_prompts(tmp_path: Path) -> None:
    weights = save_flow_map(tmp_path / "model")
    initial = initial_in(tmp_path, tmp_path / "model")
    assert initial.report is not None
    assert initial.report.new == initial.report.left_over == ()
    assert all(torch.equal(x, weights[name]) for name, x in initial.net.state_dict().items())
    assert initial.prompts.made_by == "an encoder"


def test_the_model_is_as_readable_as_other_files_of_its_folder(tmp_path: Path) -> None:
    save_flow_map(tmp_path / "model")
    (tmp_path / "plain").touch()
    modes = {path.name: oct(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {oct((tmp_path / "plain").stat().st_mode)}


def test_a_model_that_does_not_fit_leaves_the_previous_one(
    tmp_path: Path, small_disk: DiskMaker
) -> None:
    save_flow_map(tmp_path / "model")
    size = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    folder = small_disk(size * 3 // 2) / "model"
    save_flow_map(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FlowmapsrError, match=r"model: cannot write it .*No space left.* folder"):
        save_flow_map(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_changed_conditioning_loads_the_rest_and_says_what_is_new(tmp_path: Path) -> None:
    weights = save_flow_map(tmp_path / "model")
    initial = initial_in(tmp_path, tmp_path / "model", {**ATTENDING, "guidance_conditioning": True})
    assert initial.report is not None
    changed = {"unet.class_embedding.linear_1.weight"}
    assert names_of(initial.report.new) == names_of(initial.report.left_over) == changed
    mine = initial.net.state_dict()
    assert all(torch.equal(mine[name], weights[name]) for name in mine.keys() - changed)
    table = initial.report.table()
    assert "new       [64, 40]                unet.class_embedding.linear_1.weight" in table
    assert "(there [64, 24])" in table and "unet.conv_in.weight" in table
    lines = initial.report.summary().splitlines()
    assert lines[2] == "new             1 tensors           2,560 numbers  unet.class_embedding"
    assert lines[3] == "left over       1 tensors           1,536 numbers  unet.class_embedding"


@pytest.mark.parametrize("layout", ["unet", "pipeline", "sharded"])
def test_a_diffusers_folder_of_sdxl_fills_what_it_shares(tmp_path: Path, layout: str) -> None:
    unet = sdxl_unet()
    folder = tmp_path / "checkpoint"
    size = "40KB" if layout == "sharded" else "10GB"
    unet.save_pretrained(folder / "unet" if layout == "pipeline" else folder, max_shard_size=size)
    if layout == "sharded":
        assert len(list(folder.glob("*.safetensors"))) > 1
    initial = initial_in(tmp_path, folder)
    check_sdxl(initial, unet)
    assert initial.report is not None
    assert names_of(initial.report.left_over) >= {"add_embedding.linear_1.weight"}


def test_a_file_with_a_prefix_and_other_networks_in_it_is_understood(tmp_path: Path) -> None:
    """Like bridge-matching checkpoints: the U-Net is one of several networks."""
    unet = sdxl_unet()
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    tensors = {f"denoiser.{name}": x for name, x in unet.state_dict().items()}
    tensors |= {f"vae.{name}": x.clone() for name, x in vae.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "lbm.safetensors")
    initial = initial_in(tmp_path, tmp_path / "lbm.safetensors")
    check_sdxl(initial, unet)
    assert initial.report is not None
    assert "vae.encoder.conv_in.weight" in names_of(initial.report.left_over)


def test_sdxls_own_single_file_is_understood(tmp_path: Path) -> None:
    unet = sdxl_unet()
    tensors = {sdxl_name(name): x for name, x in unet.state_dict().items()}
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, tmp_path / "sd_xl.safetensors")
    initial = initial_in(tmp_path, tmp_path / "sd_xl.safetensors")
    check_sdxl(initial, unet)
    assert initial.report is not None
    left = names_of(initial.report.left_over)
    assert "first_stage_model.encoder.conv_in.weight" in left
    assert "model.diffusion_model.label_emb.0.0.weight" in left


def test_a_registered_model_version_is_fetched_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    weights = save_flow_map(tmp_path / "model")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.create_experiment("registry", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(tmp_path / "model"), "model")
    client.create_registered_model("tiny")
    client.create_model_version("tiny", f"{run.info.artifact_uri}/model", run.info.run_id)
    initial = initial_in(tmp_path, "models:/tiny/1")
    assert all(torch.equal(x, weights[name]) for name, x in initial.net.state_dict().items())
    shutil.rmtree(tmp_path / "artifacts")  # a resumed stage needs no server
    report = initial_in(tmp_path, "models:/tiny/1").report
    assert report is not None and report.source == "models:/tiny/1"
    with pytest.raises(FlowmapsrError, match=r"models:/tiny/7.*check name, version"):
        initial_in(tmp_path / "other", "models:/tiny/7")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"block_channels": [24, 48]}, r"another architecture: nothing fits|only .* of the net"),
        ({"attention_heads": [2, 4]}, r"its attention_heads is \(2, 2\).*set model.attention_h"),
        ({"norm_groups": 16}, "its norm_groups is 8, the network's 16"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    save_flow_map(tmp_path / "model")
    with pytest.raises(FlowmapsrError, match=message):
        initial_in(tmp_path, tmp_path / "model", {**ATTENDING, **model})
    sdxl_unet().save_pretrained(tmp_path / "sdxl")
    with pytest.raises(FlowmapsrError, match="another architecture"):
        initial_in(tmp_path, tmp_path / "sdxl", {**ATTENDING, **model})


def test_how_much_must_fit_is_a_setting(tmp_path: Path) -> None:
    save_flow_map(tmp_path / "model")
    deeper = {**ATTENDING, "layers_per_block": 3}
    initial = initial_in(tmp_path, tmp_path / "model", deeper)
    assert initial.report is not None and initial.report.new
    with pytest.raises(
        FlowmapsrError, match=r"only \d+\.\d% of the network fits .*at least 90% must"
    ):
        initial_in(tmp_path, tmp_path / "model", deeper, min_loaded_fraction=0.9)


def test_a_file_of_which_nothing_fits_shows_names_of_both(tmp_path: Path) -> None:
    safetensors.torch.save_file({"blocks.0.w": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(FlowmapsrError, match=r"nothing fits .*unet\..*; there is blocks\.0\.w \[3"):
        initial_in(tmp_path, tmp_path / "x.safetensors", min_loaded_fraction=0.0)


def test_other_forms_of_checkpoint_are_refused_and_named(tmp_path: Path) -> None:
    sdxl_unet().save_pretrained(tmp_path / "bin", safe_serialization=False)
    with pytest.raises(FlowmapsrError, match=r"holds no diffusion_pytorch_model.*never a pickle"):
        initial_in(tmp_path, tmp_path / "bin")
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path / "vae")
    with pytest.raises(FlowmapsrError, match="is a diffusers AutoencoderKL"):
        initial_in(tmp_path, tmp_path / "vae")
    with pytest.raises(FlowmapsrError, match="no run, no model and no diffusers folder"):
        initial_in(tmp_path, tmp_path)
    with pytest.raises(FlowmapsrError, match="there is no file or folder"):
        initial_in(tmp_path, tmp_path / "nowhere")


def test_an_adversarial_stage_refuses_a_base_that_is_partly_random(tmp_path: Path) -> None:
    sdxl_unet().save_pretrained(tmp_path / "sdxl")
    adversarial = {"adversarial": {}, "dynamic_weighting": False}
    with pytest.raises(FlowmapsrError, match=r"leaves \d+ parameters random.*train a stage"):
        initial_in(tmp_path, tmp_path / "sdxl", **adversarial)


def test_an_unfinished_stage_cannot_be_a_starting_point(tmp_path: Path) -> None:
    recipe = recipe_from(tmp_path, None, ATTENDING)
    second = recipe.stages[0].model_copy(update={"name": "two"})
    recipe = recipe.model_copy(update={"stages": (*recipe.stages, second)})
    with pytest.raises(FlowmapsrError, match="stage 'two' starts from stage 'one', which is not"):
        initial_network(recipe, StagePaths(tmp_path / "run", "two"), latent_channels=CHANNELS)

"""Where a stage's first weights come from: what is loaded, new and left over; what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.samples.codecs import load_codec
from datagen.settings import DctSettings
from tests.support.small_disk import DiskMaker
from tests.support.tiny import MODEL
from training.flowmap.initial import InitialNetwork, fetch_inputs, initial_network
from training.flowmap.model_folder import FlowMapConfig, save_model
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import PROMPTS, Prompts, stand_in
from training.run_dir.paths import StagePaths
from training.settings.model import ModelSettings
from training.settings.recipe import TrainingRecipe

CHANNELS = 4
ATTENDING = {**MODEL, "transformer_layers": [0, 1]}
PROMPT = Prompts("an encoder", PROMPTS, torch.arange(16.0).reshape(2, 8))


def _recipe(
    folder: Path, source: str | None, model: dict[str, Any], **stage: Any
) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "manifest": "/data",
            "output": str(folder / "run"),
            "model": model,
            "stages": [
                {
                    "name": "one",
                    "objective": {"kind": "flow_matching"},
                    "steps": 1000,
                    "init_from": source,
                    **stage,
                }
            ],
        }
    )


def _initial(
    folder: Path, source: Path | str | None, model: dict[str, Any] = ATTENDING, **stage: Any
) -> InitialNetwork:
    recipe = _recipe(folder, None if source is None else str(source), model, **stage)
    paths = StagePaths(folder / "run", "one")
    fetch_inputs(recipe, paths)
    return initial_network(recipe, paths, latent_channels=CHANNELS)


def _names(rows: Any) -> set[str]:
    return {row.name for row in rows}


def _save_model(folder: Path, model: dict[str, Any] = ATTENDING) -> dict[str, Tensor]:
    settings = ModelSettings.model_validate(model)
    net = FlowMapNet(settings, latent_channels=CHANNELS)
    torch.nn.init.normal_(net.unet.conv_out.weight)
    net.prompts.copy_(PROMPT.embeddings)
    config = FlowMapConfig(
        model=settings,
        latent_channels=CHANNELS,
        codec=DctSettings(),
        codec_fingerprint=load_codec(DctSettings()).fingerprint,
        prompt_embeddings=PROMPT.made_by,
        degradation=DegradationSettings(scale=(1, 4)),
        stage="warmup",
        recipe_digest="0",
        dataset_digest="0",
    )
    save_model(folder, net, config, prompts=PROMPT)
    return net.state_dict()


def _sdxl_unet(**changes: Any) -> UNet2DConditionModel:
    """A small U-Net of SDXL's kind: text tokens and no class embedding."""
    torch.manual_seed(5)
    arguments: dict[str, Any] = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (2, 2),
        "cross_attention_dim": 24,
        "use_linear_projection": True,
        "norm_num_groups": 8,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
        **changes,
    }
    return UNet2DConditionModel(**arguments)


def _check_sdxl(initial: InitialNetwork, unet: UNet2DConditionModel) -> None:
    """Everything but text attention and the new conditions comes from the checkpoint."""
    report, mine = initial.report, initial.net.state_dict()
    assert report is not None
    theirs = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
    text = {name for name in theirs if "attn2.to_k" in name or "attn2.to_v" in name}
    added = {name for name in theirs if "add_embedding" in name}
    assert text and added
    assert _names(report.loaded) == theirs.keys() - text - added
    assert all(torch.equal(mine[name], theirs[name]) for name in _names(report.loaded))
    classes = {name for name in mine if "class_embedding" in name}
    assert len(classes) == 4 and _names(report.new) == text | classes
    assert {row.note for row in report.new if row.name in text} == {"there [32, 24]"}


def test_without_a_source_the_weights_are_random(tmp_path: Path) -> None:
    initial = _initial(tmp_path, None)
    assert initial.report is None
    assert torch.equal(initial.prompts.embeddings, stand_in(8).embeddings)


def test_a_model_folder_gives_everything_and_its_prompts(tmp_path: Path) -> None:
    weights = _save_model(tmp_path / "model")
    initial = _initial(tmp_path, tmp_path / "model")
    assert initial.report is not None
    assert initial.report.new == initial.report.left_over == ()
    assert all(torch.equal(x, weights[name]) for name, x in initial.net.state_dict().items())
    assert initial.prompts.made_by == "an encoder"


def test_the_model_is_as_readable_as_other_files_of_its_folder(tmp_path: Path) -> None:
    _save_model(tmp_path / "model")
    (tmp_path / "plain").touch()
    modes = {path.name: oct(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {oct((tmp_path / "plain").stat().st_mode)}


def test_a_model_that_does_not_fit_leaves_the_previous_one(
    tmp_path: Path, small_disk: DiskMaker
) -> None:
    _save_model(tmp_path / "model")
    size = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    folder = small_disk(size * 3 // 2) / "model"
    _save_model(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FlowmapsrError, match=r"model: cannot write it .*No space left.* folder"):
        _save_model(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_changed_conditioning_loads_the_rest_and_says_what_is_new(tmp_path: Path) -> None:
    weights = _save_model(tmp_path / "model")
    initial = _initial(tmp_path, tmp_path / "model", {**ATTENDING, "guidance_conditioning": True})
    assert initial.report is not None
    changed = {"unet.class_embedding.linear_1.weight"}
    assert _names(initial.report.new) == _names(initial.report.left_over) == changed
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
    unet = _sdxl_unet()
    folder = tmp_path / "checkpoint"
    size = "40KB" if layout == "sharded" else "10GB"
    unet.save_pretrained(folder / "unet" if layout == "pipeline" else folder, max_shard_size=size)
    if layout == "sharded":
        assert len(list(folder.glob("*.safetensors"))) > 1
    initial = _initial(tmp_path, folder)
    _check_sdxl(initial, unet)
    assert initial.report is not None
    assert _names(initial.report.left_over) >= {"add_embedding.linear_1.weight"}


def test_a_file_with_a_prefix_and_other_networks_in_it_is_understood(tmp_path: Path) -> None:
    """Like bridge-matching checkpoints: the U-Net is one of several networks."""
    unet = _sdxl_unet()
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    tensors = {f"denoiser.{name}": x for name, x in unet.state_dict().items()}
    tensors |= {f"vae.{name}": x.clone() for name, x in vae.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "lbm.safetensors")
    initial = _initial(tmp_path, tmp_path / "lbm.safetensors")
    _check_sdxl(initial, unet)
    assert initial.report is not None
    assert "vae.encoder.conv_in.weight" in _names(initial.report.left_over)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SDXL_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""diffusers' modules and SDXL's own names for them, by hand."""


def _sdxl_name(name: str) -> str:
    module = next(module for module in SDXL_NAMES if name.startswith(module + "."))
    rest = name.removeprefix(module + ".")
    if ".resnets." in module:
        inner, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[inner]}.{kind}"
    return f"model.diffusion_model.{SDXL_NAMES[module]}.{rest}"


def test_sdxls_own_single_file_is_understood(tmp_path: Path) -> None:
    unet = _sdxl_unet()
    tensors = {_sdxl_name(name): x for name, x in unet.state_dict().items()}
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, tmp_path / "sd_xl.safetensors")
    initial = _initial(tmp_path, tmp_path / "sd_xl.safetensors")
    _check_sdxl(initial, unet)
    assert initial.report is not None
    left = _names(initial.report.left_over)
    assert "first_stage_model.encoder.conv_in.weight" in left
    assert "model.diffusion_model.label_emb.0.0.weight" in left


def test_a_registered_model_version_is_fetched_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    weights = _save_model(tmp_path / "model")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.create_experiment("registry", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(tmp_path / "model"), "model")
    client.create_registered_model("tiny")
    client.create_model_version("tiny", f"{run.info.artifact_uri}/model", run.info.run_id)
    initial = _initial(tmp_path, "models:/tiny/1")
    assert all(torch.equal(x, weights[name]) for name, x in initial.net.state_dict().items())
    shutil.rmtree(tmp_path / "artifacts")  # a resumed stage needs no server
    assert _initial(tmp_path, "models:/tiny/1").report is not None
    with pytest.raises(FlowmapsrError, match=r"models:/tiny/7.*check name, version"):
        _initial(tmp_path / "other", "models:/tiny/7")


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
    _save_model(tmp_path / "model")
    with pytest.raises(FlowmapsrError, match=message):
        _initial(tmp_path, tmp_path / "model", {**ATTENDING, **model})
    _sdxl_unet().save_pretrained(tmp_path / "sdxl")
    with pytest.raises(FlowmapsrError, match="another architecture"):
        _initial(tmp_path, tmp_path / "sdxl", {**ATTENDING, **model})


def test_how_much_must_fit_is_a_setting(tmp_path: Path) -> None:
    _save_model(tmp_path / "model")
    deeper = {**ATTENDING, "layers_per_block": 3}
    initial = _initial(tmp_path, tmp_path / "model", deeper)
    assert initial.report is not None and initial.report.new
    with pytest.raises(
        FlowmapsrError, match=r"only \d+\.\d% of the network fits .*at least 90% must"
    ):
        _initial(tmp_path, tmp_path / "model", deeper, min_loaded_fraction=0.9)


def test_a_file_of_which_nothing_fits_shows_names_of_both(tmp_path: Path) -> None:
    safetensors.torch.save_file({"blocks.0.w": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(FlowmapsrError, match=r"nothing fits .*unet\..*; there is blocks\.0\.w \[3"):
        _initial(tmp_path, tmp_path / "x.safetensors", min_loaded_fraction=0.0)


def test_other_forms_of_checkpoint_are_refused_and_named(tmp_path: Path) -> None:
    pickle = tmp_path / "unet.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(FlowmapsrError, match=r"unet\.ckpt is no \.safetensors file.*pickle"):
        _initial(tmp_path, pickle)
    _sdxl_unet().save_pretrained(tmp_path / "bin", safe_serialization=False)
    with pytest.raises(FlowmapsrError, match=r"holds no diffusion_pytorch_model.*never a pickle"):
        _initial(tmp_path, tmp_path / "bin")
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path / "vae")
    with pytest.raises(FlowmapsrError, match="is a diffusers AutoencoderKL"):
        _initial(tmp_path, tmp_path / "vae")
    with pytest.raises(FlowmapsrError, match="no run, no model and no diffusers folder"):
        _initial(tmp_path, tmp_path)
    with pytest.raises(FlowmapsrError, match="there is no file or folder"):
        _initial(tmp_path, tmp_path / "nowhere")
    (tmp_path / "truncated.safetensors").write_bytes(b"\x10")
    with pytest.raises(FlowmapsrError, match=r"truncated\.safetensors cannot be read"):
        _initial(tmp_path, tmp_path / "truncated.safetensors")


def test_an_adversarial_stage_refuses_a_base_that_is_partly_random(tmp_path: Path) -> None:
    _sdxl_unet().save_pretrained(tmp_path / "sdxl")
    adversarial = {"adversarial": {}, "dynamic_weighting": False}
    with pytest.raises(FlowmapsrError, match=r"leaves \d+ parameters random.*train a stage"):
        _initial(tmp_path, tmp_path / "sdxl", **adversarial)


def test_an_unfinished_stage_cannot_be_a_starting_point(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, None, ATTENDING)
    second = recipe.stages[0].model_copy(update={"name": "two"})
    recipe = recipe.model_copy(update={"stages": (*recipe.stages, second)})
    with pytest.raises(FlowmapsrError, match="stage 'two' starts from stage 'one', which is not"):
        initial_network(recipe, StagePaths(tmp_path / "run", "two"), latent_channels=CHANNELS)

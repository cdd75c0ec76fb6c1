"""Weights from elsewhere are checked before a step is made: values, storage, function, names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import DctCodec
from tests.support.foreign_weights import (
    ATTENDING,
    CHANNELS,
    check_sdxl,
    initial_in,
    recipe_from,
    save_flow_map,
    sdxl_name,
    sdxl_unet,
)
from training.flowmap.initial import check_later_weights, initial_network
from training.flowmap.network import FlowMapNet
from training.run_dir.paths import StagePaths
from training.settings.model import ModelSettings
from training.weights.diffusers_folder import SAME_FUNCTION, defaults

NAME = "mid_block.resnets.0.conv1.weight"


def _file(folder: Path, tensors: dict[str, Tensor], name: str = "unet.safetensors") -> Path:
    safetensors.torch.save_file(tensors, folder / name)
    return folder / name


def _tensors() -> dict[str, Tensor]:
    return {name: values.clone() for name, values in sdxl_unet().state_dict().items()}


def _configured(folder: Path, **changes: Any) -> Path:
    """A diffusers folder whose config says something else; the weights are the same."""
    sdxl_unet().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named_with_their_file(tmp_path: Path, value: float) -> None:
    tensors = _tensors()
    tensors[NAME].view(-1)[:2] = value
    path = _file(tmp_path, tensors)
    with pytest.raises(
        FlowmapsrError, match=rf"stage 'one': init_from: {path}: 2 of the .* of {NAME} are not fin"
    ):
        initial_in(tmp_path, path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64])
def test_values_that_are_no_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = _file(tmp_path, {**_tensors(), NAME: _tensors()[NAME].to(dtype)})
    kind = "8-bit floats" if dtype.is_floating_point else "whole numbers"
    with pytest.raises(FlowmapsrError, match=rf"holds {kind} in place of weights \({NAME} is"):
        initial_in(tmp_path, path)


@pytest.mark.parametrize(
    ("suffix", "what"),
    [
        ("weight.quant_state.bitsandbytes__nf4", "4-bit weights of bitsandbytes"),
        ("SCB", "8-bit weights of bitsandbytes"),
        ("qweight", "packed weights of GPTQ or AWQ"),
        ("weight._data", "weights quantized by optimum-quanto"),
        ("scale_weight", "8-bit weights with scales"),
    ],
)
def test_quantized_weights_are_called_by_their_kind(tmp_path: Path, suffix: str, what: str) -> None:
    extra = {f"mid_block.attentions.0.proj_in.{suffix}": torch.zeros(4, dtype=torch.uint8)}
    with pytest.raises(FlowmapsrError, match=f"holds {what} .*name the file of the same model in"):
        initial_in(tmp_path, _file(tmp_path, _tensors() | extra))


def test_whole_numbers_of_other_networks_in_the_file_do_not_matter(tmp_path: Path) -> None:
    ids = {"text_model.embeddings.position_ids": torch.arange(77)}
    check_sdxl(initial_in(tmp_path, _file(tmp_path, _tensors() | ids)), sdxl_unet())


def test_a_quantized_folder_of_diffusers_is_refused(tmp_path: Path) -> None:
    folder = _configured(tmp_path / "unet", quantization_config={"quant_method": "torchao"})
    with pytest.raises(FlowmapsrError, match="weights quantized by torchao, which are not read"):
        initial_in(tmp_path, folder)


def test_every_setting_that_changes_the_function_is_that_of_our_network() -> None:
    net = FlowMapNet(ModelSettings.model_validate(ATTENDING), latent_channels=CHANNELS)
    own = {name: net.unet.config[name] for name in SAME_FUNCTION}
    assert own == {name: defaults()[name] for name in SAME_FUNCTION}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_fn", "gelu"),
        ("norm_eps", 1e-3),
        ("downsample_padding", 0),
        ("mid_block_scale_factor", 0.5),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("center_input_sample", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("only_cross_attention", [False, True]),
    ],
)
def test_another_function_at_the_same_shapes_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    folder = _configured(tmp_path / "unet", **{field: value})
    with pytest.raises(FlowmapsrError, match=f"its {field} is .*, the network's .*; no setting"):
        initial_in(tmp_path, folder)


def test_the_config_beside_a_file_counts_as_that_of_its_folder(tmp_path: Path) -> None:
    folder = _configured(tmp_path / "unet", act_fn="gelu")
    with pytest.raises(FlowmapsrError, match="its act_fn is 'gelu'"):
        initial_in(tmp_path, folder / "diffusion_pytorch_model.safetensors")
    save_flow_map(tmp_path / "model")
    with pytest.raises(FlowmapsrError, match="its norm_groups is 8, the network's 16"):
        model = tmp_path / "model" / "model.safetensors"
        initial_in(tmp_path, model, {**ATTENDING, "norm_groups": 16})


def test_heads_of_a_block_without_attention_do_not_matter(tmp_path: Path) -> None:
    folder = _configured(tmp_path / "unet", attention_head_dim=[5, 2])
    check_sdxl(initial_in(tmp_path, folder), sdxl_unet())


def test_what_a_pipeline_was_trained_for_is_told(tmp_path: Path) -> None:
    sdxl_unet().save_pretrained(tmp_path / "sd" / "unet")
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    configs = {
        "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
        "vae/config.json": {"scaling_factor": 0.13025, "shift_factor": None},
    }
    for name, config in configs.items():
        (tmp_path / "sd" / name).parent.mkdir()
        (tmp_path / "sd" / name).write_text(json.dumps(config))
    codec = DctCodec()
    codec.scaling = {"scaling_factor": 0.18215}
    recipe = recipe_from(tmp_path, f"{tmp_path}/sd/unet/", {**ATTENDING, "time_embedding_scale": 1})
    folder = StagePaths(tmp_path / "run", "one")
    initial = initial_network(recipe, folder, latent_channels=CHANNELS, codec=codec)
    assert initial.report is not None
    told = [line for line in initial.report.summary().splitlines() if line.startswith("differs")]
    assert [line.split(":")[0].split()[-1] for line in told] == [
        "prediction_type",
        "time_embedding_scale",
        "scaling_factor",
    ]
    assert "'epsilon' there, 'velocity' here" in told[0]
    assert "0.13025 there, 0.18215 here" in told[2]


def test_a_model_that_was_trained_on_other_latents_is_told(tmp_path: Path) -> None:
    save_flow_map(tmp_path / "model")
    recipe = recipe_from(tmp_path, str(tmp_path / "model"), ATTENDING)
    folder = StagePaths(tmp_path / "run", "one")
    for codec, told in ((DctCodec(), False), (DctCodec(4), True)):
        initial = initial_network(recipe, folder, latent_channels=CHANNELS, codec=codec)
        assert initial.report is not None
        assert ("codec_fingerprint" in initial.report.summary()) == told


@pytest.mark.parametrize(("channels", "told"), [(9, True), (8, True), (CHANNELS, False)])
def test_a_wider_first_convolution_is_told_as_such(
    tmp_path: Path, channels: int, told: bool
) -> None:
    sdxl_unet(in_channels=channels).save_pretrained(tmp_path / "inpainting")
    initial = initial_in(tmp_path, tmp_path / "inpainting")
    assert initial.report is not None
    line = (
        f"differs   channels of the first convolution: {channels} there, 4 here; a network for "
        "other inputs, with a mask or a picture beside the latents"
    )
    assert (line in initial.report.summary()) == told


@pytest.mark.parametrize(
    "prefix",
    ["", "unet.", "module.", "model.", "model.diffusion_model.", "_orig_mod.", "module.unet."],
)
def test_any_prefix_of_diffusers_names_is_understood(tmp_path: Path, prefix: str) -> None:
    tensors = {prefix + name: values for name, values in _tensors().items()}
    check_sdxl(initial_in(tmp_path, _file(tmp_path, tensors)), sdxl_unet())


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "module.model.diffusion_model."])
def test_sdxls_own_names_need_no_prefix(tmp_path: Path, prefix: str) -> None:
    plain = {sdxl_name(name): values for name, values in _tensors().items()}
    tensors = {prefix + name.removeprefix("model.diffusion_model."): plain[name] for name in plain}
    check_sdxl(initial_in(tmp_path, _file(tmp_path, tensors)), sdxl_unet())


def test_names_that_compiling_and_sharding_left_are_understood(tmp_path: Path) -> None:
    names = {"mid_block.": "mid_block._orig_mod.", "conv_in.": "_fsdp_wrapped_module.conv_in."}
    tensors = {}
    for name, values in _tensors().items():
        start = next((one for one in names if name.startswith(one)), "")
        tensors[names.get(start, "") + name.removeprefix(start)] = values
    check_sdxl(initial_in(tmp_path, _file(tmp_path, tensors)), sdxl_unet())


@pytest.mark.parametrize("size", ["10GB", "40KB"])
def test_a_variant_of_diffusers_is_taken_where_it_is_all_there_is(
    tmp_path: Path, size: str
) -> None:
    unet = sdxl_unet().half()
    unet.save_pretrained(tmp_path / "unet", variant="fp16", max_shard_size=size)
    initial = initial_in(tmp_path, tmp_path / "unet")
    check_sdxl(initial, unet.float())
    assert initial.report is not None and ".fp16" in initial.report.source


def test_a_sharded_checkpoint_that_lacks_a_part_names_it(tmp_path: Path) -> None:
    sdxl_unet().save_pretrained(tmp_path / "unet", max_shard_size="40KB")
    part = min((tmp_path / "unet").glob("*.safetensors"))
    part.unlink()
    with pytest.raises(FlowmapsrError, match=rf"{part.name} is missing"):
        initial_in(tmp_path, tmp_path / "unet")


def test_weights_of_a_later_stage_are_checked_before_the_first_trains(tmp_path: Path) -> None:
    tensors = _tensors()
    tensors[NAME].fill_(float("nan"))
    path = _file(tmp_path, tensors)
    recipe = recipe_from(tmp_path, None, ATTENDING)
    later = recipe.stages[0].model_copy(update={"name": "two", "init_from": str(path)})
    recipe = recipe.model_copy(update={"stages": (*recipe.stages, later)})
    with pytest.raises(FlowmapsrError, match=rf"stage 'two': init_from: .*{NAME} are not finite"):
        check_later_weights(recipe, StagePaths(tmp_path / "run", "one"), latent_channels=CHANNELS)


def test_a_lora_alone_is_called_that(tmp_path: Path) -> None:
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 32)}
    with pytest.raises(FlowmapsrError, match="holds a LoRA, which only adds to a network"):
        initial_in(tmp_path, _file(tmp_path, lora))


def test_the_report_names_what_the_user_wrote(tmp_path: Path) -> None:
    save_flow_map(tmp_path / "run" / "stages" / "zero" / "model")
    model = tmp_path / "run" / "stages" / "zero" / "model"
    recipe = recipe_from(tmp_path, None, ATTENDING)
    first = recipe.stages[0].model_copy(update={"name": "zero"})
    recipe = recipe.model_copy(update={"stages": (first, *recipe.stages)})
    folder = StagePaths(tmp_path / "run", "one")
    report = initial_network(recipe, folder, latent_channels=CHANNELS).report
    assert report is not None and report.source == f"zero ({model})"
    report = initial_in(tmp_path, model).report
    assert report is not None and report.source == str(model)

"""Checkpoints of other trainings and systems, small, and the network that starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from datagen.degradation.settings import DegradationSettings
from datagen.samples.codecs import load_codec
from datagen.settings import DctSettings
from tests.support.tiny import MODEL
from training.flowmap.initial import InitialNetwork, fetch_inputs, initial_network
from training.flowmap.model_folder import FlowMapConfig, save_model
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import PROMPTS, Prompts
from training.run_dir.paths import StagePaths
from training.settings.model import ModelSettings
from training.settings.recipe import TrainingRecipe

CHANNELS = 4
ATTENDING = {**MODEL, "transformer_layers": [0, 1]}
PROMPT = Prompts("an encoder", PROMPTS, torch.arange(16.0).reshape(2, 8))


def recipe_from(
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


def initial_in(
    folder: Path, source: Path | str | None, model: dict[str, Any] = ATTENDING, **stage: Any
) -> InitialNetwork:
    recipe = recipe_from(folder, None if source is None else str(source), model, **stage)
    paths = StagePaths(folder / "run", "one")
    fetch_inputs(recipe, paths)
    return initial_network(recipe, paths, latent_channels=CHANNELS)


def names_of(rows: Any) -> set[str]:
    return {row.name for row in rows}


def save_flow_map(folder: Path, model: dict[str, Any] = ATTENDING) -> dict[str, Tensor]:
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


def sdxl_unet(**changes: Any) -> UNet2DConditionModel:
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


def check_sdxl(initial: InitialNetwork, unet: UNet2DConditionModel) -> None:
    """Everything but text attention and the new conditions comes from the checkpoint."""
    report, mine = initial.report, initial.net.state_dict()
    assert report is not None
    theirs = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
    text = {name for name in theirs if "attn2.to_k" in name or "attn2.to_v" in name}
    added = {name for name in theirs if "add_embedding" in name}
    assert text and added
    assert names_of(report.loaded) == theirs.keys() - text - added
    assert all(torch.equal(mine[name], theirs[name]) for name in names_of(report.loaded))
    classes = {name for name in mine if "class_embedding" in name}
    assert len(classes) == 4 and names_of(report.new) == text | classes
    assert {row.note for row in report.new if row.name in text} == {"there [32, 24]"}


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


def sdxl_name(name: str) -> str:
    module = next(module for module in SDXL_NAMES if name.startswith(module + "."))
    rest = name.removeprefix(module + ".")
    if ".resnets." in module:
        inner, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[inner]}.{kind}"
    return f"model.diffusion_model.{SDXL_NAMES[module]}.{rest}"

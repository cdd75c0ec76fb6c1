"""A flow map's model folder: its config, weights and prompts, and a LoRA beside the weights it was
trained on."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec, load_codec
from datagen.samples.weights import read_weights
from datagen.settings import CodecSettings
from training.flowmap.lora import merge_lora, split_weights
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import PROMPTS_FILE, Prompts, write_prompts
from training.settings.adversarial import LoraSettings
from training.settings.model import ModelSettings
from training.weights.model_folder import (
    WEIGHTS,
    ModelConfig,
    new_model_folder,
    weights_errors,
)

LORA = "lora.safetensors"


class FlowMapConfig(ModelConfig):
    """`config.json` of a flow map."""

    model: ModelSettings
    latent_channels: int
    codec: CodecSettings
    codec_fingerprint: str
    guidance_strength: float = 1.0
    """Default w at inference; ignored by models without `guidance_conditioning`."""
    prompt_embeddings: str
    """What made the prompt embeddings: a text encoder's name, or the deterministic stand-in's."""
    lora: LoraSettings | None = None
    """Of the LoRA in `lora.safetensors`, trained at scale 1 on the frozen `model.safetensors`."""


def save_model(folder: Path, net: FlowMapNet, config: FlowMapConfig, *, prompts: Prompts) -> None:
    """Writes the model folder, or leaves what was there.

    Raises:
        FlowmapsrError: it cannot be written.
    """
    with new_model_folder(folder, config) as new:
        base, lora = split_weights(net)
        safetensors.torch.save_file(base, new / WEIGHTS)
        if config.lora is not None:
            safetensors.torch.save_file(lora, new / LORA)
        write_prompts(new / PROMPTS_FILE, prompts)


def load_net(
    folder: Path, config: FlowMapConfig, device: torch.device, *, lora_scale: float | None = None
) -> FlowMapNet:
    """The network with its weights, float32, in evaluation mode; a LoRA is merged into them at
    `lora_scale`, the config's when None.

    Raises:
        FlowmapsrError: files that do not fit, or a `lora_scale` for a model without LoRA.
    """
    if lora_scale is not None and config.lora is None:
        raise FlowmapsrError(
            f"{folder} holds no LoRA, so there is no lora scale to choose: leave it out, or name "
            "the model of an adversarial stage"
        )
    net = FlowMapNet(config.model, latent_channels=config.latent_channels)
    with weights_errors(folder / WEIGHTS):
        net.load_state_dict(read_weights(folder / WEIGHTS))
    if config.lora is not None:
        with weights_errors(folder / LORA):
            merge_lora(
                net,
                read_weights(folder / LORA),
                rank=config.lora.rank,
                targets=config.lora.target_modules,
                scale=config.lora.scale if lora_scale is None else lora_scale,
            )
    return net.to(device).eval()


def load_matching_codec(config: FlowMapConfig, device: torch.device) -> Codec:
    """The codec the model was trained with; other weights under the same name are refused."""
    codec = load_codec(config.codec, device=str(device))
    if codec.fingerprint != config.codec_fingerprint:
        raise FlowmapsrError(
            f"the codec {config.codec.kind} has fingerprint {codec.fingerprint}, but the model was "
            f"trained with {config.codec_fingerprint}: its weights have changed since"
        )
    return codec

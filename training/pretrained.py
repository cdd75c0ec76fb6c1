"""A trained model on disk: `config.json` + `model.safetensors`, written whole and read with checks.

Everything inference needs travels with the weights: size, codec, prompts and the degradation it was
    trained on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError

from datagen.codecs import Codec, load_codec
from datagen.errors import FlowmapsrError
from datagen.fields import Settings
from datagen.operations import DegradationSettings
from datagen.settings import CodecSettings
from training.models.flow_map_net import FlowMapNet
from training.settings import ModelSettings

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT_VERSION = 1


class ModelConfig(Settings):
    """`config.json` of a model folder."""

    format_version: Literal[1] = 1
    model: ModelSettings
    latent_channels: int
    codec: CodecSettings
    codec_fingerprint: str
    guidance_strength: float = 1.0
    """w at inference unless told otherwise; only a model with `guidance_input` heeds it."""
    prompt_embeddings: str
    """What made the prompt embeddings: a text encoder's name, or the deterministic stand-in's."""
    degradation: DegradationSettings
    """The chain behind the training pairs; evaluation degrades with the same."""
    stage: str
    recipe_digest: str
    dataset_digest: str


def save_model(folder: Path, net: FlowMapNet, config: ModelConfig) -> None:
    """Writes the model folder under a temporary name, then renames it over what was there."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: x.detach().cpu().contiguous() for name, x in net.state_dict().items()}
    safetensors.torch.save_file(weights, temporary / WEIGHTS)
    (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def find_model(path: str | Path) -> Path:
    """The model folder behind a model folder or a run folder (its last finished stage).

    Raises:
        FlowmapsrError: there is neither, or no stage of the run is finished.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FlowmapsrError(f"there is no model folder {folder}; give a model or a run folder")
    if (folder / CONFIG).is_file():
        return folder
    recipe = folder / "recipe.json"
    if not recipe.is_file():
        raise FlowmapsrError(f"{folder} holds neither {CONFIG} (a model) nor recipe.json (a run)")
    stages = [stage["name"] for stage in json.loads(recipe.read_text())["stages"]]
    for name in reversed(stages):
        model = folder / "stages" / name / "model"
        if (model / CONFIG).is_file():
            return model
    raise FlowmapsrError(
        f"no stage of the run {folder} is finished yet (stages: {', '.join(stages)}); run its "
        "training again to go on"
    )


def load_config(folder: Path) -> ModelConfig:
    """Reads and checks `config.json`."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlowmapsrError(f"{path} cannot be read: {error}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise FlowmapsrError(
            f"{path}: format_version is {version!r}, but this flowmapsr reads version "
            f"{FORMAT_VERSION}; "
            "use the flowmapsr that wrote the model, or train it again"
        )
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise FlowmapsrError(f"{path}: {field}: {first['msg']}") from error


def load_net(folder: Path, config: ModelConfig, device: torch.device) -> FlowMapNet:
    """The network with its weights, float32, in evaluation mode."""
    net = FlowMapNet(config.model, latent_channels=config.latent_channels)
    net.strength = config.guidance_strength
    path = folder / WEIGHTS
    try:
        weights = safetensors.torch.load_file(path)
        net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise FlowmapsrError(
            f"{path} does not hold the weights of {folder / CONFIG}: {error}"
        ) from error
    return net.to(device).eval()


def load_matching_codec(config: ModelConfig, device: torch.device) -> Codec:
    """The codec the model was trained with; other weights under the same name are refused."""
    codec = load_codec(config.codec, device=str(device))
    if codec.fingerprint != config.codec_fingerprint:
        raise FlowmapsrError(
            f"the codec {config.codec.kind} has fingerprint {codec.fingerprint}, but the "
            "model was trained "
            f"with {config.codec_fingerprint}: its weights have changed since"
        )
    return codec

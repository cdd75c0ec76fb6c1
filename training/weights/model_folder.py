"""A trained model on disk: `config.json` + `model.safetensors`, written whole and read with checks.

Everything inference needs travels with the weights: size, codec, prompts and the degradation it was
    trained on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.io.local import errors
from datagen.records import FrozenModel, read_record
from datagen.samples.codecs import Codec, load_codec
from datagen.settings import CodecSettings
from training.flowmap.lora import merge_lora, split_weights
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import PROMPTS_FILE, Prompts, read_prompts, write_prompts
from training.settings.model import ModelSettings

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LORA = "lora.safetensors"


class LoraRecord(FrozenModel):
    """The LoRA in `lora.safetensors`, trained at scale 1 on the frozen `model.safetensors`."""

    rank: int
    target_modules: tuple[str, ...]
    scale: float
    """How strongly it acts at inference unless told otherwise."""


class ModelConfig(FrozenModel):
    """`config.json` of a model folder."""

    format_version: Literal[1] = 1
    model: ModelSettings
    latent_channels: int
    codec: CodecSettings
    codec_fingerprint: str
    guidance_strength: float = 1.0
    """w at inference unless told otherwise; only a model with `guidance_conditioning` heeds it."""
    prompt_embeddings: str
    """What made the prompt embeddings: a text encoder's name, or the deterministic stand-in's."""
    degradation: DegradationSettings
    """The chain behind the training pairs; evaluation degrades with the same."""
    lora: LoraRecord | None = None
    stage: str
    recipe_digest: str
    dataset_digest: str


def save_model(folder: Path, net: FlowMapNet, config: ModelConfig, *, prompts: Prompts) -> None:
    """Writes the model folder under a temporary name, then renames it over what was there.

    The LoRA of an adversarial stage goes into a file of its own, beside the weights it started on.

    Raises:
        FlowmapsrError: it cannot be written; what was there before still is.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        with errors(str(folder), "write"):
            shutil.rmtree(temporary, ignore_errors=True)
            _write_model(temporary, net, config, prompts)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
    except safetensors.SafetensorError as error:  # holds no number that tells the reasons apart
        raise FlowmapsrError(
            f"{folder}: cannot write it ({error}); make room there, or choose another place"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(temporary: Path, net: FlowMapNet, config: ModelConfig, prompts: Prompts) -> None:
    temporary.mkdir(parents=True)
    base, lora = split_weights(net)
    (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    safetensors.torch.save_file(base, temporary / WEIGHTS)
    if config.lora is not None:
        safetensors.torch.save_file(lora, temporary / LORA)
    write_prompts(temporary / PROMPTS_FILE, prompts)
    for path in temporary.iterdir():  # safetensors lets nobody else read what it writes
        shutil.copymode(temporary / CONFIG, path)


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
    try:
        stages = [stage["name"] for stage in json.loads(recipe.read_bytes())["stages"]]
    except (ValueError, TypeError, KeyError) as error:
        raise FlowmapsrError(
            f"{recipe} is torn ({error}): name one of the model folders in {folder / 'stages'}"
        ) from error
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
    remedy = "use the flowmapsr that wrote the model, or train it again"
    config = read_record(folder / CONFIG, ModelConfig, remedy=remedy)
    if config is None:
        raise FlowmapsrError(f"there is no {folder / CONFIG}; give a model folder or a run folder")
    return config


def load_net(
    folder: Path, config: ModelConfig, device: torch.device, *, lora_scale: float | None = None
) -> FlowMapNet:
    """The network with its weights, float32, in evaluation mode.

    Args:
        lora_scale: strength of the LoRA, which is merged into the weights; the config's when None.

    Raises:
        FlowmapsrError: files that do not fit, or a `lora_scale` for a model without LoRA.
    """
    if lora_scale is not None and config.lora is None:
        raise FlowmapsrError(
            f"{folder} holds no LoRA, so there is no lora scale to choose: leave it out, or name "
            "the model of an adversarial stage"
        )
    net = FlowMapNet(config.model, latent_channels=config.latent_channels)
    net.strength = config.guidance_strength
    with _fitting(folder / WEIGHTS):
        net.load_state_dict(_read(folder / WEIGHTS))
    if config.lora is not None:
        with _fitting(folder / LORA):
            merge_lora(
                net,
                _read(folder / LORA),
                rank=config.lora.rank,
                targets=config.lora.target_modules,
                scale=config.lora.scale if lora_scale is None else lora_scale,
            )
    return net.to(device).eval()


def _read(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """What goes wrong while weights are read and put in, as an error that names the file."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise FlowmapsrError(
            f"{path} does not hold the weights of {path.with_name(CONFIG)}: {error}"
        ) from error


def export_merged(folder: Path, target: Path, *, lora_scale: float | None = None) -> None:
    """A model with LoRA to a model folder without: the LoRA merged into the weights at one scale.

    Args:
        folder: an adversarial stage's model folder.
        target: the model folder to write; one that is there is replaced.
        lora_scale: strength of the LoRA; the config's when None.
    """
    config = load_config(folder)
    if config.lora is None:
        raise FlowmapsrError(f"{folder} holds no LoRA to merge; it can be used as it is")
    net = load_net(folder, config, torch.device("cpu"), lora_scale=lora_scale)
    merged = config.model_copy(update={"lora": None})
    save_model(target, net, merged, prompts=read_prompts(folder / PROMPTS_FILE))


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

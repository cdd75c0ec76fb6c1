"""ELIR's model folder: its config, and one file with the collapsed networks and the decoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from datagen.samples.weights import read_weights
from training.elir.codec import CodecNetworks, dct_codec, tiny_codec
from training.elir.collapsible import CollapsibleConv, collapse
from training.elir.network import Networks, build
from training.settings.elir import BlockCodec, ElirModelSettings, LatentConsistency
from training.weights.model_folder import WEIGHTS, ModelConfig, new_model_folder, weights_errors

PARTS = ("encoder", "coarse", "field", "decoder")
"""What restores, by its prefix in the file. The frozen encoder is needed for training only."""


class ElirConfig(ModelConfig):
    """`config.json` of an ELIR model."""

    model: ElirModelSettings
    latent_channels: int
    objective: LatentConsistency
    """That of its stage: restoring takes the noise and the number of steps from it."""

    @property
    def steps(self) -> int:
        """Steps of the field that it was trained for."""
        return self.objective.segments if self.model.has_field else 0


def networks_of(model: ElirModelSettings, codec: CodecNetworks, *, expand: int | None) -> Networks:
    """The networks with random weights beside the codec's."""
    growth = model.coarse_growth if model.has_coarse else None
    return build(model.width, model.middle_blocks, expand=expand, codec=codec, growth=growth)


def save_model(folder: Path, networks: Networks, config: ElirConfig) -> None:
    """Writes the model folder, or leaves what was there.

    Raises:
        FlowmapsrError: it cannot be written.
    """
    with new_model_folder(folder, config) as new:
        safetensors.torch.save_file(collapsed_state(networks), new / WEIGHTS)


def collapsed_state(networks: Networks) -> dict[str, Tensor]:
    """The tensors of a model file, float32."""
    return {
        f"{part}.{name}": tensor.contiguous()
        for part in PARTS
        for whole in [copy.deepcopy(getattr(networks, part)).float()]
        for name, tensor in collapse(whole).state_dict().items()
    }


def load_networks(folder: Path, config: ElirConfig, device: torch.device) -> Networks:
    """The networks that restore, collapsed, float32, in evaluation mode.

    Raises:
        FlowmapsrError: files that do not fit.
    """
    networks = networks_of(config.model, _codec_to_fill(config), expand=None)
    path = folder / WEIGHTS
    with weights_errors(path):
        fill(networks, read_weights(path))
    for part in PARTS:
        getattr(networks, part).to(device).eval().requires_grad_(False)
    return networks


@torch.no_grad()
def fill(networks: Networks, state: Mapping[str, Tensor]) -> None:
    """Loads a model file's tensors; what is trained wider begins as the same function.

    Raises:
        RuntimeError: names or shapes that do not fit.
    """
    left = dict(state)
    modules = nn.ModuleDict({part: getattr(networks, part) for part in PARTS})
    for name, module in modules.named_modules():
        if isinstance(module, CollapsibleConv):
            module.start_from(left.pop(f"{name}.weight"), left.pop(f"{name}.bias"))
    plain = {
        name: tensor
        for name, tensor in modules.state_dict().items()
        if name.endswith((".wide.weight", ".wide.bias", ".narrow.weight", ".narrow.bias"))
    }
    modules.load_state_dict(plain | left)


def _codec_to_fill(config: ElirConfig) -> CodecNetworks:
    codec = config.model.codec
    if isinstance(codec, BlockCodec):
        return dct_codec(codec.downsample)
    return tiny_codec(config.latent_channels)

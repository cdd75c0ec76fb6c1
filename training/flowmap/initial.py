"""A flow map's first network: fresh, then with the weights and prompts that the recipe names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from datagen.errors import FlowmapsrError
from training.flowmap.model_folder import FlowMapConfig, load_net
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import PROMPTS_FILE, Prompts, encode_once, read_prompts, stand_in
from training.run_dir.paths import StagePaths
from training.settings.model import TextEncoderPrompts
from training.settings.recipe import TrainingRecipe
from training.weights.initialize import LoadReport, fetch_weights, fill, weights_path
from training.weights.model_folder import WEIGHTS, load_config
from training.weights.sources import WeightSource, in_memory, list_tensors, open_source

WITHOUT_SHAPE = ("attention_heads", "norm_groups", "time_embedding_scale")
"""Settings of a network that change what its weights mean, but not their shapes."""


@dataclass(frozen=True)
class InitialNetwork:
    net: FlowMapNet
    prompts: Prompts
    report: LoadReport | None
    """What was loaded; None for random weights."""


def fetch_inputs(recipe: TrainingRecipe, folder: StagePaths) -> None:
    """What a stage needs from elsewhere, once for all workers: a model version, the prompts."""
    fetch_weights(recipe, folder)
    if isinstance(recipe.prompts, TextEncoderPrompts):
        encode_once(folder.run, recipe.prompts, channels=recipe.model.prompt_channels)


def initial_network(
    recipe: TrainingRecipe, folder: StagePaths, *, latent_channels: int
) -> InitialNetwork:
    """The network of a stage with its first weights, after `fetch_inputs`.

    Raises:
        FlowmapsrError: the source is missing, of another architecture, or leaves parameters new
            that the stage would not train.
    """
    settings = recipe.stage(folder.name)
    name = recipe.initial_weights_of(folder.name)
    net = FlowMapNet(recipe.model, latent_channels=latent_channels)
    source = None
    if name is not None:
        path = weights_path(name, folder)
        source = open_source(path, recipe.model, net.state_dict().keys(), open_model=_open_model)
    prompts = _prompts(recipe, folder, source)
    net.prompts.copy_(prompts.embeddings)
    if source is None:
        return InitialNetwork(net, prompts, None)
    report = fill(net, recipe.model, source, least_share=settings.min_loaded_fraction)
    if settings.adversarial is not None and report.new:
        raise FlowmapsrError(
            f"stage {folder.name!r} freezes the network and trains a LoRA, but {source.place} "
            f"leaves {len(report.new)} parameters random, first {report.new[0].name}: train a "
            "stage on it before this one"
        )
    return InitialNetwork(net, prompts, report)


def _open_model(folder: Path) -> WeightSource:
    """A flow map's model folder; a LoRA is merged at the strength that inference would use."""
    config = load_config(folder, FlowMapConfig)
    if config.lora is None:
        tensors = list_tensors([folder / WEIGHTS])
    else:
        # Building a network draws random numbers, and the stage's own must not depend on it.
        with torch.random.fork_rng(devices=[]):
            state = load_net(folder, config, torch.device("cpu")).state_dict()
        tensors = {name: in_memory(tensor) for name, tensor in state.items()}
    del tensors["prompts"]
    layout = {name: getattr(config.model, name) for name in WITHOUT_SHAPE}
    return WeightSource(str(folder), tensors, layout, folder)


def _prompts(recipe: TrainingRecipe, folder: StagePaths, source: WeightSource | None) -> Prompts:
    """The recipe's text encoders decide, else a model that is trained further keeps its prompts."""
    channels = recipe.model.prompt_channels
    if isinstance(recipe.prompts, TextEncoderPrompts):
        return encode_once(folder.run, recipe.prompts, channels=channels)
    if source is not None and source.model_folder is not None:
        theirs = read_prompts(source.model_folder / PROMPTS_FILE)
        if theirs.embeddings.shape[1] == channels:
            return theirs
    return stand_in(channels)

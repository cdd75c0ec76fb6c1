"""A flow map's first network: fresh, then with the weights and prompts that the recipe names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec
from training.flowmap.model_folder import FlowMapConfig, load_net
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import PROMPTS_FILE, Prompts, encode_once, read_prompts, stand_in
from training.losses.lpips import LpipsDistance, lpips_weights
from training.run_dir.further import keep_first_weights
from training.run_dir.paths import RunPaths, StagePaths
from training.settings.initial_weights import is_local_path, is_registry, is_stage
from training.settings.model import ModelSettings, TextEncoderPrompts
from training.settings.objective import Lpips
from training.settings.recipe import TrainingRecipe
from training.weights.diffusers_folder import Difference
from training.weights.initialize import LoadReport, compare, fetch_weights, fill, weights_path
from training.weights.model_folder import WEIGHTS, find_model, load_config
from training.weights.sources import WeightSource, in_memory, list_tensors, open_source

WITHOUT_SHAPE = ("attention_heads", "norm_groups", "time_embedding_scale")
"""Settings of a network that change what its weights mean, but not their shapes."""


@dataclass(frozen=True)
class InitialNetwork:
    net: FlowMapNet
    prompts: Prompts
    report: LoadReport | None
    """What was loaded; None for random weights."""


def network_settings(recipe: TrainingRecipe) -> ModelSettings:
    """Those of a recipe that trains a flow map."""
    assert isinstance(recipe.model, ModelSettings), "the system is that of model.kind"
    return recipe.model


def fetch_inputs(recipe: TrainingRecipe, folder: StagePaths) -> None:
    """What a stage and those after it need from elsewhere, once for all workers: model versions,
    the prompts. A later stage's files are here before this one trains, or are told to be missing.
    """
    for stage in recipe.stages_from(folder.name):
        fetch_weights(recipe, StagePaths(folder.run, stage.name))
    _keep_frozen(recipe, folder)
    if isinstance(recipe.prompts, TextEncoderPrompts):
        encode_once(folder.run, recipe.prompts, channels=network_settings(recipe).prompt_channels)


def _keep_frozen(recipe: TrainingRecipe, folder: StagePaths) -> None:
    """Keeps the model of another run that a stage freezes: the stage's checkpoints do not hold it,
    and that run has another one when it is trained further."""
    name = recipe.initial_weights_of(folder.name)
    if name is None or recipe.stage(folder.name).adversarial is None or not is_local_path(name):
        return
    path = Path(name)
    in_a_run = any(RunPaths(place).recipe.is_file() for place in (path, *path.parents[:3]))
    if path.is_dir() and in_a_run:
        keep_first_weights(find_model(path), folder)


def check_later_weights(
    recipe: TrainingRecipe, folder: StagePaths, *, latent_channels: int
) -> None:
    """Refuses weights from elsewhere that a later stage needs, before this one trains.

    Raises:
        FlowmapsrError: as `initial_network` would for that stage, or its perceptual loss.
    """
    for stage in recipe.stages_from(folder.name)[1:]:
        if isinstance(stage.perceptual, Lpips):
            LpipsDistance.from_file(lpips_weights(stage.perceptual.weights))
        name = recipe.initial_weights_of(stage.name)
        if name is not None and not is_stage(name):
            later = StagePaths(folder.run, stage.name)
            with torch.device("meta"):  # names and shapes only
                net = FlowMapNet(network_settings(recipe), latent_channels=latent_channels)
            with _blamed(stage.name, name):
                source = _open(name, later, network_settings(recipe), net)
                report = compare(net, source, least_share=stage.min_loaded_fraction)
                for row in report.loaded:
                    source.tensors[row.name].read_finite()


def initial_network(
    recipe: TrainingRecipe, folder: StagePaths, *, latent_channels: int, codec: Codec | None = None
) -> InitialNetwork:
    """The network of a stage with its first weights, after `fetch_inputs`.

    Args:
        codec: what made the latents, to compare with that of the weights.

    Raises:
        FlowmapsrError: the source is missing, holds no plain and finite weights, is of another
            architecture or function, or leaves parameters new that the stage would not train.
    """
    settings = recipe.stage(folder.name)
    name = recipe.initial_weights_of(folder.name)
    net = FlowMapNet(network_settings(recipe), latent_channels=latent_channels)
    if name is None:
        prompts = _prompts(recipe, folder, None)
        net.prompts.copy_(prompts.embeddings)
        return InitialNetwork(net, prompts, None)
    with _blamed(folder.name, name):
        source = _open(name, folder, network_settings(recipe), net)
        report = fill(net, source, least_share=settings.min_loaded_fraction)
        prompts = _prompts(recipe, folder, source)
    net.prompts.copy_(prompts.embeddings)
    if settings.adversarial is not None and report.new:
        raise FlowmapsrError(
            f"stage {folder.name!r} freezes the network and trains a LoRA, but {source.place} "
            f"leaves {len(report.new)} parameters random, first {report.new[0].name}: train a "
            "stage on it before this one"
        )
    if codec is not None:
        report = replace(report, differences=(*report.differences, *other_latents(source, codec)))
    return InitialNetwork(net, prompts, report)


@contextmanager
def _blamed(stage: str, name: str) -> Iterator[None]:
    """Errors in the block name the setting, as it was written."""
    try:
        yield
    except FlowmapsrError as error:
        written = "" if name in str(error) else f" {name}"
        raise FlowmapsrError(f"stage {stage!r}: init_from{written}: {error}") from error


def _open(name: str, folder: StagePaths, model: ModelSettings, net: FlowMapNet) -> WeightSource:
    path = weights_path(name, folder)
    source = open_source(
        path, model, net.state_dict().keys(), open_model=partial(_open_model, model)
    )
    is_all = source.place == name or is_registry(name)  # whose files are a copy that goes again
    place = name if is_all else f"{name} ({source.place})"
    return replace(source, place=place)


def _open_model(model: ModelSettings, folder: Path) -> WeightSource:
    """A flow map's model folder; a LoRA is merged at the strength that inference would use."""
    config = load_config(folder, FlowMapConfig)
    weights = folder / WEIGHTS
    if config.lora is None:
        tensors = list_tensors([weights])
    else:
        # Building a network draws random numbers, and the stage's own must not depend on it.
        with torch.random.fork_rng(devices=[]):
            state = load_net(folder, config, torch.device("cpu")).state_dict()
        tensors = {name: in_memory(tensor, name, weights) for name, tensor in state.items()}
    tensors.pop("prompts", None)
    pairs = {name: (getattr(config.model, name), getattr(model, name)) for name in WITHOUT_SHAPE}
    differences = tuple(
        Difference(name, theirs, ours, f"set model.{name} to it", refused=True)
        for name, (theirs, ours) in pairs.items()
        if theirs != ours
    )
    latents = {"codec_fingerprint": config.codec_fingerprint}
    return WeightSource(str(folder), tensors, differences, folder, latents)


def other_latents(source: WeightSource, codec: Codec) -> Iterator[Difference]:
    """How the latents that the weights were trained on differ from those of the dataset."""
    ours = {"codec_fingerprint": codec.fingerprint, **codec.scaling}
    for name, theirs in source.latents.items():
        if name in ours and theirs != ours[name]:
            yield Difference(name, theirs, ours[name], "latents mean something else here")


def _prompts(recipe: TrainingRecipe, folder: StagePaths, source: WeightSource | None) -> Prompts:
    """The recipe's text encoders decide, else a model that is trained further keeps its prompts."""
    channels = network_settings(recipe).prompt_channels
    if isinstance(recipe.prompts, TextEncoderPrompts):
        return encode_once(folder.run, recipe.prompts, channels=channels)
    if source is not None and source.model_folder is not None:
        theirs = read_prompts(source.model_folder / PROMPTS_FILE)
        if theirs.embeddings.shape[1] == channels:
            return theirs
    return stand_in(channels)

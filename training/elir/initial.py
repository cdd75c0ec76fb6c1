"""ELIR's first networks: random but for the codec, or with the weights that the recipe names."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from datagen.samples.autoencoder_codec import AutoencoderCodec
from datagen.samples.weights import read_weights
from datagen.settings import AutoencoderSettings
from training.elir.codec import CodecNetworks, dct_codec, tiny_codec
from training.elir.model_folder import ElirConfig, fill, networks_of
from training.elir.network import Networks, VectorField
from training.elir.public_files import public_file
from training.elir.public_names import load_public, public_size
from training.elir.stage_objective import ElirNet
from training.run_dir.paths import StagePaths
from training.settings.elir import BlockCodec, ElirModelSettings, TinyAutoencoder
from training.settings.initial_weights import is_public
from training.weights.initialize import LoadReport, Parameter, weights_path
from training.weights.model_folder import (
    WEIGHTS,
    find_model,
    load_config,
    model_kind,
    weights_errors,
)


def initial_net(
    model: ElirModelSettings, name: str | None, folder: StagePaths
) -> tuple[ElirNet, LoadReport | None]:
    """The networks of a stage with its first weights.

    Args:
        name: of the weights, as `initial_weights_of` gives it; None for random ones.

    Raises:
        FlowmapsrError: weights that cannot be had, or of other sizes.
    """
    codec = codec_networks(model.codec)
    net = ElirNet(networks_of(model, codec, expand=model.expand), codec)
    if name is None:
        # An untrained field stands still, so a training begins with the coarse estimate.
        assert isinstance(net.networks.field, VectorField)
        for parameter in net.networks.field.last.parameters():
            nn.init.zeros_(parameter)
        return net, None
    try:
        source = public_file(name) if is_public(name) else weights_path(name, folder)
        fill_from = _fill_public if source.is_file() else _fill_own
        loaded = fill_from(net.networks, source, model)
    except FlowmapsrError as error:
        raise FlowmapsrError(f"stage {folder.name!r}: init_from {name}: {error}") from error
    rows = tuple(Parameter(name, tuple(one.shape)) for name, one in loaded.items())
    return net, LoadReport(str(source), rows, (), ())


def _fill_own(networks: Networks, place: Path, model: ElirModelSettings) -> dict[str, Tensor]:
    """Loads a model folder, or the one of a run folder; gives what it holds."""
    source = find_model(place)
    _check_same(source, model)
    state = read_weights(source / WEIGHTS)
    with weights_errors(source / WEIGHTS):
        fill(networks, state)
    return state


def _fill_public(networks: Networks, file: Path, model: ElirModelSettings) -> dict[str, Tensor]:
    """Loads a file of weights as ELIR's authors publish them; gives what it holds."""
    state = read_weights(file)
    for field, there in zip(("width", "middle_blocks"), public_size(state), strict=True):
        here = getattr(model, field)
        if there != here:
            raise FlowmapsrError(
                f"its field has {field} {there}, and model.{field} is {here}: set "
                f"model.{field}={there}"
            )
    load_public(networks, state)
    return state


def _check_same(source: Path, model: ElirModelSettings) -> None:
    """Refuses a model of another kind or of other sizes."""
    kind = model_kind(source)
    if kind != model.kind:
        raise FlowmapsrError(
            f"{source} is a model of kind {kind!r}, and model.kind is {model.kind!r}: name one of "
            "that kind"
        )
    theirs = load_config(source, ElirConfig).model
    for field in ("codec", "width", "middle_blocks", "coarse_growth", "parts"):
        there, here = getattr(theirs, field), getattr(model, field)
        if there != here:
            raise FlowmapsrError(
                f"its model.{field} is {there}, the recipe's {here}: set model.{field} to it"
            )


def codec_networks(settings: TinyAutoencoder | BlockCodec) -> CodecNetworks:
    """The codec with its weights, frozen.

    Raises:
        FlowmapsrError: they cannot be had, or latents are scaled by more than the weights.
    """
    if isinstance(settings, BlockCodec):
        return dct_codec(settings.downsample)
    source = settings.source
    found = AutoencoderCodec(AutoencoderSettings(kind="autoencoder_tiny", source=source))
    if found.scaling != {"scaling_factor": 1.0, "shift_factor": 0.0}:
        raise FlowmapsrError(
            f"model.codec.source={source}: its latents have {dict(found.scaling)}, and ELIR takes "
            "them as they are (scaling_factor 1, shift_factor 0): name another, such as "
            "madebyollin/taesd3"
        )
    codec, state = tiny_codec(found.channels), found.state_dict()
    for name, half in {"encoder": codec.encoder, "decoder": codec.decoder}.items():
        _load_half(half, state, name, source)
    return codec


def _load_half(half: nn.Module, state: dict[str, Tensor], name: str, source: str) -> None:
    prefix = f"{name}."
    mine = {key.removeprefix(prefix): one for key, one in state.items() if key.startswith(prefix)}
    try:
        half.load_state_dict(mine)
    except RuntimeError as error:
        raise FlowmapsrError(
            f"model.codec.source={source}: its {name} is no tiny autoencoder of TAESD3's layers "
            f"({error}): name another, such as madebyollin/taesd3"
        ) from error

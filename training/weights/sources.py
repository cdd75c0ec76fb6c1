"""A place with weights to a list of its tensors, named as `FlowMapNet` names them, read on demand.

Reads flowmapsr's models, diffusers folders and safetensors files in diffusers' or SDXL's own names;
never a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io.weight_files import TensorEntry, read_json, tensor_entries
from datagen.samples.weights import check_finite
from training.run_dir.paths import RunPaths
from training.settings.model import ModelSettings
from training.weights.diffusers_folder import Difference, UNet, find_unet, unet_around
from training.weights.model_folder import CONFIG, WEIGHTS, find_model
from training.weights.names import network_names


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, not read yet."""

    entry: TensorEntry
    name: str
    """In its file."""
    file: Path
    read: Callable[[], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def read_finite(self) -> Tensor:
        """As float32. Raises `FlowmapsrError` where a value is not finite."""
        values = self.read().float()
        check_finite({self.name: values}, self.file)
        return values


@dataclass(frozen=True)
class WeightSource:
    """What a place offers to a network."""

    place: str
    """What the user wrote, and the files behind it where that is another place."""
    tensors: Mapping[str, StoredTensor]
    """By the network's names; what has no such name keeps its own."""
    differences: tuple[Difference, ...] = ()
    """Where the source's own settings are not those of the network."""
    model_folder: Path | None = None
    """Where it is a model of flowmapsr."""
    latents: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the latents that it was trained on."""


def open_source(
    place: Path,
    model: ModelSettings,
    names: Collection[str],
    *,
    open_model: Callable[[Path], WeightSource],
) -> WeightSource:
    """The weights at `place`.

    Args:
        place: run folder, model folder, diffusers folder, or safetensors file.
        model: the settings of the network to be filled.
        names: its parameters' names; of a file's prefixes the one that fits them best is taken.
        open_model: opens a model folder of flowmapsr.

    Raises:
        FlowmapsrError: no weights there, or weights in a form that is not read.
    """
    if place.is_file():
        return _open_file(place, model, names, open_model)
    if not place.is_dir():
        raise FlowmapsrError(f"there is no file or folder {place}")
    if RunPaths(place).recipe.is_file() or "format_version" in read_json(place / CONFIG):
        return open_model(find_model(place))
    return _open_unet(find_unet(place), model, names)


def _open_file(
    path: Path,
    model: ModelSettings,
    names: Collection[str],
    open_model: Callable[[Path], WeightSource],
) -> WeightSource:
    """A file, with what the config beside it says of it."""
    unet = unet_around(path)
    if unet is not None:
        return _open_unet(unet, model, names)
    if path.name == WEIGHTS and "format_version" in read_json(path.with_name(CONFIG)):
        return open_model(path.parent)
    return WeightSource(str(path), _renamed(list_tensors([path]), model, names))


def _open_unet(unet: UNet, model: ModelSettings, names: Collection[str]) -> WeightSource:
    tensors = _renamed(list_tensors(unet.files), model, names)
    return WeightSource(unet.place, tensors, unet.differences(model), latents=unet.latents)


def _renamed(
    tensors: dict[str, StoredTensor], model: ModelSettings, names: Collection[str]
) -> dict[str, StoredTensor]:
    """The tensors under the network's names where they have one there."""
    mapping = network_names(tensors, model, names)
    renamed = {mine: tensors[theirs] for mine, theirs in mapping.items()}
    used = set(mapping.values())
    return renamed | {name: tensor for name, tensor in tensors.items() if name not in used}


def list_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of safetensors files, not read yet. Raises `FlowmapsrError`: a file is none."""
    return {
        name: StoredTensor(entry, name, path, partial(_read_tensor, path, name))
        for path in files
        for name, entry in tensor_entries(path).items()
    }


def _read_tensor(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, framework="pt") as opened:
        return opened.get_tensor(name)


def in_memory(tensor: Tensor, name: str, file: Path) -> StoredTensor:
    """A tensor that was read already, as if it were stored."""
    return StoredTensor(TensorEntry("F32", tuple(tensor.shape)), name, file, lambda: tensor)

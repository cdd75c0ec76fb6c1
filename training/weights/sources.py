"""A place with weights to a list of its tensors, named as `FlowMapNet` names them, read on demand.

Reads flowmapsr's models, diffusers folders and `.safetensors` files in diffusers' or SDXL's own
names; never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from datagen.errors import FlowmapsrError
from training.run_dir.paths import RunPaths
from training.settings.model import ModelSettings
from training.weights.model_folder import CONFIG, find_model

UNET = "unet."
FIRST_LAYER = "conv_in.weight"
SDXL_PREFIX = "model.diffusion_model."
DIFFUSERS_CLASS = "UNet2DConditionModel"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class WeightSource:
    """What a place offers to a network."""

    place: str
    tensors: Mapping[str, StoredTensor]
    """By the network's names; what has no such name keeps its own."""
    layout: Mapping[str, Any]
    """The settings of the source that no shape shows, named as in `ModelSettings`."""
    model_folder: Path | None = None
    """Where it is a model of flowmapsr."""


def open_source(
    place: Path,
    model: ModelSettings,
    names: Collection[str],
    *,
    open_model: Callable[[Path], WeightSource],
) -> WeightSource:
    """The weights at `place`.

    Args:
        place: run folder, model folder, diffusers folder, or `.safetensors` file.
        model: the settings of the network to be filled.
        names: its parameters' names; of a file's prefixes the one that fits them best is taken.
        open_model: opens a model folder of flowmapsr.

    Raises:
        FlowmapsrError: no weights there, or weights in a form that is not read.
    """
    if place.is_file():
        if place.suffix != ".safetensors":
            raise FlowmapsrError(
                f"init_from: {place} is no .safetensors file; other formats are not read, "
                "because a pickle can run code. Save the weights as safetensors"
            )
        return WeightSource(str(place), _renamed(list_tensors([place]), model, names), {})
    if not place.is_dir():
        raise FlowmapsrError(f"init_from: there is no file or folder {place}")
    if RunPaths(place).recipe.is_file() or "format_version" in _config(place):
        return open_model(find_model(place))
    return _diffusers(place / "unet" if (place / "unet").is_dir() else place, model, names)


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FlowmapsrError(f"{folder / CONFIG} cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def _diffusers(folder: Path, model: ModelSettings, names: Collection[str]) -> WeightSource:
    config = _config(folder)
    kind = config.get("_class_name")
    if kind != DIFFUSERS_CLASS:
        what = f"a diffusers {kind}" if kind else "no run, no model and no diffusers folder"
        raise FlowmapsrError(
            f"init_from: {folder} is {what}; give a flowmapsr run or model folder, or the "
            f"folder of a diffusers {DIFFUSERS_CLASS}"
        )
    tensors = _renamed(list_tensors(_diffusers_files(folder)), model, names)
    return WeightSource(str(folder), tensors, _diffusers_layout(config))


def _diffusers_files(folder: Path) -> list[Path]:
    index = folder / f"{DIFFUSERS_WEIGHTS}.index.json"
    if index.is_file():
        parts = json.loads(index.read_bytes())["weight_map"].values()
        return [folder / part for part in sorted(set(parts))]
    if (folder / DIFFUSERS_WEIGHTS).is_file():
        return [folder / DIFFUSERS_WEIGHTS]
    found = ", ".join(sorted(path.name for path in folder.iterdir()))
    raise FlowmapsrError(
        f"init_from: {folder} holds no {DIFFUSERS_WEIGHTS} (it holds {found}); only "
        "safetensors are read, never a pickle. Name another file by its path"
    )


def _diffusers_layout(config: dict[str, Any]) -> dict[str, Any]:
    """diffusers' own rule: a missing number of heads is in `attention_head_dim`."""
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    if isinstance(heads, int):
        heads = [heads] * len(config["block_out_channels"])
    return {"attention_heads": tuple(heads), "norm_groups": config["norm_num_groups"]}


def _renamed(
    tensors: dict[str, StoredTensor], model: ModelSettings, names: Collection[str]
) -> dict[str, StoredTensor]:
    """The tensors under the network's names where they have one there."""
    mapping = _mapping(tensors, model, names)
    renamed = {mine: tensors[theirs] for mine, theirs in mapping.items()}
    used = set(mapping.values())
    return renamed | {name: tensor for name, tensor in tensors.items() if name not in used}


def _mapping(
    theirs: Collection[str], model: ModelSettings, names: Collection[str]
) -> dict[str, str]:
    """The network's name -> the file's name."""
    if any(name.startswith(SDXL_PREFIX + "input_blocks.") for name in theirs):
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        # It only moves values from name to name, so names in the values' place give the mapping.
        config = {"layers_per_block": model.layers_per_block}
        moved = convert_ldm_unet_checkpoint({name: name for name in theirs}, config)
        return {UNET + mine: name for mine, name in moved.items()}
    best: dict[str, str] = {}
    firsts = [name for name in theirs if name.endswith(FIRST_LAYER)]
    for prefix in sorted(name.removesuffix(FIRST_LAYER) for name in firsts):
        mine = {
            UNET + name.removeprefix(prefix): name for name in theirs if name.startswith(prefix)
        }
        best = max(best, {one: mine[one] for one in mine if one in names}, key=len)
    return best


def list_tensors(files: list[Path]) -> dict[str, StoredTensor]:
    """The tensors of safetensors files, not read yet."""
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping: it cannot be iterated)
                    shape = tuple(opened.get_slice(name).get_shape())
                    tensors[name] = StoredTensor(shape, partial(_read_tensor, path, name))
        except (OSError, safetensors.SafetensorError) as error:
            raise FlowmapsrError(f"init_from: {path} cannot be read: {error}") from error
    return tensors


def _read_tensor(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, framework="pt") as opened:
        return opened.get_tensor(name)


def in_memory(tensor: Tensor) -> StoredTensor:
    """A tensor that is there already, as if it were stored."""
    return StoredTensor(tuple(tensor.shape), lambda: tensor)

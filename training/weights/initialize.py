"""Fills a stage's network by name and shape with the weights that the recipe names, and reports
what was loaded, what is new and what was left over."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from datagen.errors import FlowmapsrError
from datagen.io.redaction import redacted
from datagen.io.weight_files import TensorEntry, check_plain
from training.run_dir.paths import StagePaths
from training.settings.initial_weights import REGISTRY, is_registry, is_stage
from training.settings.recipe import TrainingRecipe
from training.tracking.store.address import mlflow_installed, tracking_uri
from training.tracking.store.client import new_client
from training.tracking.store.logged_models import patience
from training.tracking.unsent import error_reason
from training.weights.diffusers_folder import Difference
from training.weights.model_folder import CONFIG, model_kind
from training.weights.names import FIRST_LAYER
from training.weights.sources import WeightSource

SHOWN = 6
"""Names in the log's short table; the file has all."""


@dataclass(frozen=True)
class Parameter:
    """A line of the report."""

    name: str
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What a network took from its source."""

    source: str
    loaded: tuple[Parameter, ...]
    new: tuple[Parameter, ...]
    """Parameters of the network that keep their fresh values."""
    left_over: tuple[Parameter, ...]
    """Tensors of the source that the network does not have."""
    differences: tuple[Difference, ...] = ()
    """What means something else there than here."""

    def summary(self) -> str:
        """How many tensors and numbers were loaded, are new, were left over; and their modules;
        then what means something else there."""
        lines = [f"weights from {self.source}"]
        parts = {"loaded": self.loaded, "new": self.new, "left over": self.left_over}
        for part, rows in parts.items():
            modules = "" if part == "loaded" else _modules(rows)
            lines.append(f"{part:10}{len(rows):7} tensors{_numbers(rows):16,} numbers{modules}")
        lines += [f"{'differs':10}{difference}" for difference in self.differences]
        return "\n".join(lines)

    def table(self) -> str:
        """The summary and a line for every parameter."""
        parts = {"new": self.new, "left over": self.left_over, "loaded": self.loaded}
        rows = [
            f"{part:10}{str(list(row.shape)):24}{row.name}{row.note and f'  ({row.note})'}"
            for part, parameters in parts.items()
            for row in parameters
        ]
        return "\n".join([self.summary(), "", *rows]) + "\n"


def fetch_weights(recipe: TrainingRecipe, folder: StagePaths) -> None:
    """Downloads what a stage starts from, completely or not at all, if it is a version of a model
    in MLflow's registry and missing; once for all workers.

    Raises:
        FlowmapsrError: no such version, or the tracking server does not provide it.
    """
    source, target = recipe.initial_weights_of(folder.name), folder.inputs
    if source is None or not is_registry(source) or target.is_dir():
        return
    if not mlflow_installed():
        raise FlowmapsrError(
            f"init_from: {source} needs MLflow, which is not installed: install it, or give "
            "the folder of a model"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        got = _download(source, partial)
        kind = model_kind(got)
        if kind != recipe.model.kind:
            raise FlowmapsrError(
                f"init_from: {source} is a model of kind {kind!r}, and model.kind is "
                f"{recipe.model.kind!r}: name a version of that kind"
            )
        os.replace(got, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(source: str, folder: Path) -> Path:
    """A model version's files, in `folder` or below it; none of them is opened."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before it is imported
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    try:
        client = new_client()
        version = client.get_model_version(*source.removeprefix(REGISTRY).split("/"))
        with patience():
            got = Path(download_artifacts(source, dst_path=str(folder), tracking_uri=uri))
        names = sorted(path.name for path in got.rglob("*") if path.is_file())
        if names:
            return _with_safetensors(got, source, names)
        # A model whose files stayed where it was trained.
        model = client.get_logged_model(version.source.removeprefix(REGISTRY))
        if model.model_type == "checkpoint":
            raise FlowmapsrError(
                f"init_from: {source} is a checkpoint, from which only its own training continues: "
                "register the model of a finished stage"
            )
        kept = Path(model.tags["files"])
        if not _was_made_by(kept, model.tags["recipe.digest"]):
            raise FileNotFoundError(f"MLflow has no copy, and that in {kept} is gone or another's")
        return Path(shutil.copytree(kept, folder / kept.name))
    except (MlflowException, OSError, KeyError) as error:
        raise FlowmapsrError(
            f"init_from: MLflow at {redacted(uri)} does not provide {source} "
            f"({error_reason(error)}); check name, version and MLFLOW_TRACKING_URI, and whether "
            "its files are still there"
        ) from error


def _was_made_by(model: Path, recipe_digest: str) -> bool:
    try:
        return bool(json.loads((model / CONFIG).read_bytes())["recipe_digest"] == recipe_digest)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _with_safetensors(folder: Path, source: str, names: list[str]) -> Path:
    if any(name.endswith(".safetensors") for name in names):
        return folder
    raise FlowmapsrError(
        f"init_from: {source} holds no .safetensors file, the only weights that are read (it holds "
        f"{', '.join(names)}): name a version that was made by flowmapsr or holds a diffusers U-Net"
    )


def weights_path(name: str, folder: StagePaths) -> Path:
    """The folder or file of what a stage starts from, after `fetch_weights`; `name` is a model
    version, an earlier stage or a path.

    Raises:
        FlowmapsrError: it is a stage that is not finished.
    """
    if is_registry(name):
        return folder.inputs
    if folder.first_weights.is_dir():
        return folder.first_weights
    if not is_stage(name):
        return Path(name)
    path = StagePaths(folder.run, name).model
    if not path.is_dir():
        raise FlowmapsrError(
            f"stage {folder.name!r} starts from stage {name!r}, which is not finished: there is no "
            f"{path}"
        )
    return path


@torch.no_grad()
def fill(net: nn.Module, source: WeightSource, *, least_share: float) -> LoadReport:
    """Copies into `net` every parameter that the source holds under its name and with its shape.

    Raises:
        FlowmapsrError: nothing fits, or less than `least_share` of the network's numbers; the same
            shapes mean another function (heads, groups, activation); values that are no plain
            weights, or not finite.
    """
    report = compare(net, source, least_share=least_share)
    parameters = dict(net.named_parameters())
    for row in report.loaded:
        parameters[row.name].copy_(source.tensors[row.name].read_finite())
    return report


def compare(net: nn.Module, source: WeightSource, *, least_share: float) -> LoadReport:
    """What `fill` would load, with its errors but that of values, of which it reads none."""
    mine = {name: tuple(values.shape) for name, values in sorted(net.named_parameters())}
    theirs = {name: stored.shape for name, stored in sorted(source.tensors.items())}
    _check_storage(source, mine)
    for difference in source.differences:
        if difference.refused:
            raise FlowmapsrError(
                f"{source.place} is a checkpoint of another architecture: its {difference.name} is "
                f"{difference.theirs!r}, the network's {difference.ours!r}; {difference.remark}"
            )
    notes = {name: f"there {list(shape)}" for name, shape in theirs.items()}
    fitting = {name for name, shape in mine.items() if theirs.get(name) == shape}
    report = LoadReport(
        source.place,
        loaded=tuple(Parameter(name, mine[name]) for name in mine if name in fitting),
        new=tuple(
            Parameter(name, mine[name], notes.get(name, "")) for name in mine if name not in fitting
        ),
        left_over=tuple(Parameter(name, theirs[name]) for name in theirs if name not in fitting),
        differences=(*_other_input(mine, theirs), *source.differences),
    )
    _check_share(report, least_share)
    return report


def _check_storage(source: WeightSource, mine: Collection[str]) -> None:
    """Other networks of a file may hold anything, as the counters of a text encoder."""
    by_file: dict[Path, dict[str, TensorEntry]] = {}
    for stored in source.tensors.values():
        by_file.setdefault(stored.file, {})[stored.name] = stored.entry
    ours = [source.tensors[name] for name in mine if name in source.tensors]
    for file, entries in by_file.items():
        check_plain(entries, file, needed=[one.name for one in ours if one.file == file])


def _other_input(
    mine: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]
) -> Iterator[Difference]:
    """The first convolution of a network for other inputs, as of an inpainting model."""
    for name in mine.keys() & theirs.keys():
        if name.endswith(FIRST_LAYER) and mine[name][1] != theirs[name][1]:
            there, here = theirs[name][1], mine[name][1]
            more = ", with a mask or a picture beside the latents" if there > here else ""
            remark = f"a network for other inputs{more}: this layer begins with random weights"
            yield Difference("channels of the first convolution", there, here, remark)


def _numbers(rows: tuple[Parameter, ...]) -> int:
    return sum(math.prod(row.shape) for row in rows)


def _modules(rows: tuple[Parameter, ...]) -> str:
    """`  unet.add_embedding, ...`: the outermost modules behind the rows, a few of them."""
    names = sorted({".".join(row.name.split(".")[:2]) for row in rows})
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "  " + ", ".join(names[:SHOWN]) + more if names else ""


def _check_share(report: LoadReport, least: float) -> None:
    if not report.loaded and any(
        ".lora" in row.name or "lora_" in row.name for row in report.left_over
    ):
        raise FlowmapsrError(
            f"{report.source} holds a LoRA, which only adds to a network: name the network that it "
            "was made for, or one that it is merged into"
        )
    share = _numbers(report.loaded) / (_numbers(report.loaded) + _numbers(report.new))
    if report.loaded and share >= least:
        return
    found = "nothing" if not report.loaded else f"only {share:.1%} of the network"
    raise FlowmapsrError(
        f"{report.source} is a checkpoint of another architecture: {found} fits by name and shape "
        f"(at least {least:.0%} must: min_loaded_fraction). The network has "
        f"{_examples(report.new)}; there is {_examples(report.left_over)}. Set `model` to the "
        "checkpoint's sizes, or name another checkpoint"
    )


def _examples(rows: tuple[Parameter, ...]) -> str:
    """The first few names with shapes, those that exist in another shape first."""
    chosen = sorted(rows, key=lambda row: not row.note)[:3]
    return ", ".join(f"{row.name} {list(row.shape)}" for row in chosen) or "nothing more"

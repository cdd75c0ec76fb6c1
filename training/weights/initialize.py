"""Fills a stage's network by name and shape with the weights that the recipe names, and reports
what was loaded, what is new and what was left over."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from datagen.errors import FlowmapsrError
from datagen.records import FrozenModel
from training.run_dir.paths import StagePaths
from training.settings.initial_weights import is_registry, is_stage
from training.settings.model import SystemSettings
from training.settings.recipe import TrainingRecipe
from training.weights.registry import download_model
from training.weights.sources import WeightSource

SHOWN = 6
"""Names in the log's short table; the file has all."""


class Parameter(FrozenModel):
    """A line of the report."""

    name: str
    shape: tuple[int, ...]
    note: str = ""

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class LoadReport(FrozenModel):
    """What a network took from its source."""

    source: str
    loaded: tuple[Parameter, ...]
    new: tuple[Parameter, ...]
    """Parameters of the network that keep their fresh values."""
    left_over: tuple[Parameter, ...]
    """Tensors of the source that the network does not have."""

    def summary(self) -> str:
        """How many tensors and numbers were loaded, are new, were left over; and their modules."""
        lines = [f"weights from {self.source}"]
        for name, rows, modules in (
            ("loaded", self.loaded, ""),
            ("new", self.new, _modules(self.new)),
            ("left over", self.left_over, _modules(self.left_over)),
        ):
            lines.append(f"{name:10}{len(rows):7} tensors{_numbers(rows):16,} numbers{modules}")
        return "\n".join(lines)

    def table(self) -> str:
        """The summary and a line for every parameter."""
        rows = [
            f"{part:10}{str(list(row.shape)):24}{row.name}{row.note and f'  ({row.note})'}"
            for part, parameters in (
                ("new", self.new),
                ("left over", self.left_over),
                ("loaded", self.loaded),
            )
            for row in parameters
        ]
        return "\n".join([self.summary(), "", *rows]) + "\n"


def fetch_weights(recipe: TrainingRecipe, folder: StagePaths) -> None:
    """Downloads what a stage starts from, if it is a model version; once for all workers."""
    source = recipe.initial_weights_of(folder.name)
    if source is not None and is_registry(source):
        download_model(source, folder.inputs)


def weights_path(name: str, folder: StagePaths) -> Path:
    """The folder or file of what a stage starts from, after `fetch_weights`.

    Args:
        name: as the recipe has it: a model version, an earlier stage or a path.

    Raises:
        FlowmapsrError: it is a stage that is not finished.
    """
    if is_registry(name):
        return folder.inputs
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
def fill(
    net: nn.Module, settings: SystemSettings, source: WeightSource, *, least_share: float
) -> LoadReport:
    """Copies into `net` every parameter that the source holds under its name and with its shape.

    Raises:
        FlowmapsrError: nothing fits, less than `least_share` of the network's numbers, or the same
            shapes mean another network (heads, groups).
    """
    _check_layout(settings, source)
    parameters = dict(net.named_parameters())
    fitting = {
        name
        for name, parameter in parameters.items()
        if name in source.tensors and source.tensors[name].shape == tuple(parameter.shape)
    }
    report = LoadReport(
        source=source.place,
        loaded=tuple(
            Parameter(name=name, shape=parameters[name].shape) for name in sorted(fitting)
        ),
        new=tuple(
            Parameter(name=name, shape=parameter.shape, note=_other_shape(source, name))
            for name, parameter in sorted(parameters.items())
            if name not in fitting
        ),
        left_over=tuple(
            Parameter(name=name, shape=stored.shape)
            for name, stored in sorted(source.tensors.items())
            if name not in fitting
        ),
    )
    _check_share(report, least_share)
    for name in fitting:
        parameters[name].copy_(source.tensors[name].read())
    return report


def _other_shape(source: WeightSource, name: str) -> str:
    return f"there {list(source.tensors[name].shape)}" if name in source.tensors else ""


def _numbers(rows: tuple[Parameter, ...]) -> int:
    return sum(row.numbers for row in rows)


def _modules(rows: tuple[Parameter, ...]) -> str:
    """`  unet.add_embedding, ...`: the outermost modules behind the rows, a few of them."""
    names = sorted({".".join(row.name.split(".")[:2]) for row in rows})
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "  " + ", ".join(names[:SHOWN]) + more if names else ""


def _check_share(report: LoadReport, least: float) -> None:
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


def _check_layout(model: SystemSettings, source: WeightSource) -> None:
    for name, theirs in source.layout.items():
        mine = getattr(model, name)
        if theirs != mine:
            raise FlowmapsrError(
                f"{source.place} is a checkpoint of another architecture: its {name} is "
                f"{theirs}, the network's {mine}; set model.{name} to it"
            )

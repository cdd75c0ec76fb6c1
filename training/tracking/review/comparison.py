"""By what runs are compared: from what they logged to the columns and charts of a page.

Trainings are compared by what they reach on held-out samples, datasets by what they hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from datagen.records import Group, group_of
from datagen.settings import DatasetRecipe
from training.settings.held_out import HELD_OUT, higher_is_better
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.tracking.store import view_format as page
from training.tracking.store.view_format import Section, View

Role = Literal["training", "dataset"]
"""The tag `role` of the runs that can be compared."""

QUALITY, LOSS = "best/psnr_nfe1", "loss/total"
"""What trainings are sorted by if their stages name nothing else; and without held-out samples."""
COSTS = ("cost/price", "cost/images_seen", "cost/restarts")
HOLDINGS = ("num_samples", "rejected", "seconds", "bytes", "num_shards")
ONE_STEP = re.compile(r"eval/psnr_x\d+_nfe1")
"""Of an evaluation on photos after the training."""
MORE = re.compile(
    rf"({HELD_OUT}(?!(?:psnr|ssim|gain)_(?:nfe|bicubic))[a-z]+(?:_[a-z]+)?)_(?:nfe\d+|bicubic)"
)
"""Of the metrics that a recipe adds to validation; the first group is all but the method."""
BY_SCALE = re.compile(rf"{HELD_OUT}(psnr|ssim)_x\d+_nfe1")
LOSS_TERM = re.compile(r"gan/|loss/(?!total|weighting)")
"""The terms of a loss; its learned weighting says nothing about a training."""
MOST_SETTINGS, MOST_SCATTERS = 8, 3
NO_RESULT = {"sources", "name"} | {
    name
    for model in (TrainingRecipe, StageSettings, DatasetRecipe)
    for name, setting in model.model_fields.items()
    if group_of(setting) is Group.EXECUTION
}
"""Settings that say where and how a run is made, not what comes out."""


class LoggedRun(NamedTuple):
    """A run as MLflow knows it, with the last values of its metrics."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


class Pictures(NamedTuple):
    """Pictures to compare, and the step at which the page shows them first."""

    keys: tuple[str, ...]
    step: int


@dataclass(frozen=True)
class Comparison:
    """Runs of one role, the best or newest first, and what they are compared by."""

    role: Role
    runs: tuple[LoggedRun, ...]
    by: str | None
    """The metric that they are sorted by; None: their age."""
    metrics: tuple[str, ...]
    """The columns of the table, of which none is empty."""
    settings: tuple[str, ...]
    """Those that differ."""

    @property
    def ascending(self) -> bool:
        return self.by is not None and not higher_is_better(self.measure)

    @property
    def measure(self) -> str:
        """What they are sorted by, whether its best or its last: `psnr_nfe1`."""
        return (self.by or "").removeprefix("best/")

    @property
    def logged(self) -> set[str]:
        """All metrics that one of the runs has."""
        return {name for run in self.runs for name in run.metrics}


def compare(role: Role, runs: Sequence[LoggedRun]) -> Comparison:
    """Compares runs, of which the newest come first."""
    settings = _differing_settings(runs)
    if role == "dataset":
        return Comparison(role, tuple(runs), None, _filled(HOLDINGS, runs), settings)
    by = _headline(runs)
    found = Comparison(role, tuple(runs), by, (), settings)
    gain = found.measure.replace("psnr", "gain").replace("ssim", "gain")
    photos = sorted(name for name in found.logged if ONE_STEP.fullmatch(name))
    on_gpus = all("cost/gpu_hours" in run.metrics for run in runs)
    hours = "cost/gpu_hours" if on_gpus else "cost/worker_hours"
    quality = (by or "", f"last/{found.measure}", f"best/{gain}", *photos)
    metrics = _filled((*quality, hours, *COSTS), runs)
    if by is None:
        return replace(found, metrics=metrics)
    sign, worst = (1 if found.ascending else -1), float("inf")
    best = sorted(runs, key=lambda run: sign * run.metrics[by] if by in run.metrics else worst)
    return replace(found, metrics=metrics, runs=tuple(best))


def _headline(runs: Sequence[LoggedRun]) -> str | None:
    """What most trainings keep their best checkpoint by, else quality, else the loss."""
    kept = Counter(
        f"best/{value.removeprefix(HELD_OUT)}"
        for run in runs
        for name, value in run.params.items()
        if name.endswith(".keep_best")
    )
    logged = {name for run in runs for name in run.metrics}
    quality = sorted(name for name in logged if name.startswith("best/psnr_"))
    wanted = (*(name for name, _ in kept.most_common()), QUALITY, *quality, LOSS)
    return next((name for name in wanted if name in logged), None)


def _filled(names: Sequence[str], runs: Sequence[LoggedRun]) -> tuple[str, ...]:
    """Each metric once, without those that are nowhere or 0 everywhere."""
    return tuple(
        name for name in dict.fromkeys(names) if any(run.metrics.get(name) for run in runs)
    )


def _differing_settings(runs: Sequence[LoggedRun]) -> tuple[str, ...]:
    """The first of the settings in which runs differ; those that all runs have come first."""
    values: dict[str, list[str]] = {}
    for run in runs:
        for name, value in run.params.items():
            values.setdefault(name, []).append(value)
    differing = [
        name
        for name, found in values.items()
        if (len(found) < len(runs) or len(set(found)) > 1) and not NO_RESULT & set(name.split("."))
    ]
    differing.sort(key=lambda name: (-len(values[name]), name))
    return tuple(differing[:MOST_SETTINGS])


def view_of(found: Comparison, *, filter: str, pictures: Pictures | None) -> View:
    """The page of a comparison; `filter` finds its runs in MLflow."""
    # Two runs of one name are told apart by their folders.
    alike = len({run.name for run in found.runs}) < len(found.runs)
    is_training = found.role == "training"
    sections = _training_charts(found) if is_training else _dataset_charts(found)
    if pictures is not None:
        title = "Pictures by step" if is_training else "Preview"
        grid = page.pictures(pictures.keys, pictures.step)
        sections.insert(1, Section(title, (grid,), across=1, height=800))
    return View(
        filter=filter,
        order=page.START_TIME if found.by is None else page.metric(found.by),
        ascending=found.ascending,
        columns=(
            page.DATASET,
            *([page.param("output")] if alike else []),
            *map(page.metric, found.metrics),
            *(() if is_training else (page.tag("buckets"), page.tag("left_out"))),
            *map(page.param, found.settings),
        ),
        sections=(*sections, *_rest(sections, found)),
    )


def _training_charts(found: Comparison) -> list[Section]:
    logged, by = found.logged, found.by
    quality = HELD_OUT + found.measure
    by_steps = [re.sub(r"_nfe\d+$", f"_nfe{steps}", quality) for steps in (1, 2, 4)]
    by_scale = sorted(name for name in logged if BY_SCALE.fullmatch(name))
    losses = sorted(name for name in logged if LOSS_TERM.match(name))
    curves: dict[str, list[list[str]]] = {
        "Quality on held-out photos": [
            *([quality], [quality.replace("psnr", "gain")], by_steps),
            *([name] for name in by_scale),
        ],
        "More metrics of held-out photos": _charts_by_metric(logged),
        # The same on held-out samples beside it: overfitting shows where they part.
        "Losses": [[name, HELD_OUT + name] for name in (*losses, LOSS)],
        "Optimization": [["optim/gradient_norm"]],
        "Speed": [["perf/images_per_second"], ["perf/data_wait_fraction"]],
    }
    sections = []
    for title, charts in curves.items():
        known = (tuple(name for name in dict.fromkeys(chart) if name in logged) for chart in charts)
        sections.append(
            Section(title, tuple(page.line(*one) for one in dict.fromkeys(known) if one))
        )
    if by is not None and found.settings:
        scatters = [page.scatter(name, by) for name in found.settings[:MOST_SCATTERS]]
        across = [page.parallel(found.settings, by)] if len(found.settings) > 1 else []
        sections.append(Section("Settings", (*scatters, *across)))
    return [section for section in sections if section.charts]


def _charts_by_metric(logged: set[str]) -> list[list[str]]:
    """A chart for each metric that a recipe adds, of all numbers of steps and bicubic."""
    charts: dict[str, list[str]] = {}
    for name in sorted(logged, reverse=True):
        if found := MORE.fullmatch(name):
            charts.setdefault(found[1], []).append(name)
    return [charts[metric] for metric in sorted(charts)]


def _dataset_charts(found: Comparison) -> list[Section]:
    return [Section("What datasets hold", tuple(map(page.bar, found.metrics)))]


def _rest(sections: Sequence[Section], found: Comparison) -> list[Section]:
    """Closed sections for what has no chart: MLflow adds one for each metric and picture, in a
    section named like the beginning of its name, which would be open."""
    charted = {chart.get("metricKey") for section in sections for chart in section.charts}
    names = {page.section_of(name) for name in found.logged - charted} | {"pictures"}
    return [Section(name, is_open=False) for name in sorted(names)]

"""What `flowmapsr status` prints: progress of a training or build, or trainings side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.reports import review_of
from pipelines.terminal.text import command, counted, duration, table

if TYPE_CHECKING:
    from datagen.build.progress import BuildStatus
    from training.tracking.summary.status import RunComparison, RunStatus, StageStatus

Found = TypeVar("Found")
RUNS_ABREAST = 6
"""Columns of a comparison; more runs go below."""
LONGEST_CELL = 40


def one_run(found: RunStatus) -> VerbResult:
    """Progress of a training run."""
    from training.run_dir.paths import RECIPE

    headings = ("stage", "state", "step", "images/s", "left", "last checkpoint", "restarts")
    lines = [found.run, *table(headings, [_stage_cells(stage) for stage in found.stages])]
    for stage in found.stages:
        if stage.stands_still:
            lines.append(f"{stage.stage}: {stage.stands_still}")
        if stage.headline is not None:
            lines.append(f"{stage.stage} {stage.headline}: {stage.headline_value:.4g}")
        if stage.held_out:
            lines.append(f"{stage.stage}: held out {_values(stage.held_out)}")
        if stage.ended:
            verb = "done" if stage.state == "done" else "stopped"
            lines.append(f"{stage.stage} {verb}: {stage.ended}")
        if stage.on_old_weights:
            anew = command("train", f"{found.run}/{RECIPE}", "--redo-later")
            lines.append(
                f"{stage.stage} rests on the old weights of {stage.on_old_weights}; to train it "
                f"anew: {anew}"
            )
        if stage.problem:
            lines.append(f"{stage.stage}: {stage.problem}")
    if found.evaluation:
        lines.append(f"last evaluation on photos: {_values(found.evaluation)}")
    lines.append(f"Review: {review_of(found.run)}")
    if found.done:
        lines += [f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', found.run)}"]
    return VerbResult({**found.model_dump(mode="json"), "review": review_of(found.run)}, lines)


def run_line(found: RunStatus) -> str:
    """A training in a line."""
    stage = found.current
    speed = _cell(stage.images_per_second, "{:.1f} images/s".format)
    left = "" if stage.seconds_left is None else f"{duration(stage.seconds_left)} left"
    problem = stage.stands_still or stage.problem or stage.ended or ""
    parts = (f"{stage.stage} {stage.state} {stage.step}/{stage.steps} steps", _headline(stage))
    words = [part for part in (*parts, speed, left, problem) if part not in ("", "-")]
    return f"{found.run}: {', '.join(words)}"


def dataset_line(found: BuildStatus) -> str:
    """A dataset in a line."""
    if found.state == "complete":
        return f"{found.dataset}: complete"
    if not found.tasks:
        return f"{found.dataset}: {found.state}, planning"
    return (
        f"{found.dataset}: {found.state}, {found.samples_done}/{found.samples} samples, "
        f"{found.tasks_done}/{found.tasks} tasks"
    )


def one_dataset(found: BuildStatus) -> VerbResult:
    """A dataset, or its open build."""
    following = {
        "building": ("status", found.dataset, "--watch"),
        "stopped": ("dataset", "build", "RECIPE", f"output={found.dataset}"),
        "complete": ("dataset", "inspect", found.dataset),
    }
    next_step = f"Next: {command(*following[found.state])}"
    return VerbResult(found.model_dump(mode="json"), [dataset_line(found), next_step])


def _values(metrics: Mapping[str, float]) -> str:
    """`psnr_x4_nfe1 27.1, ...`, without the group that all are of."""
    return ", ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in metrics.items())


def several_runs(found: RunComparison) -> VerbResult:
    """Several training runs, a column each."""
    names = _short_names([run.run for run in found.runs])
    lines: list[str] = []
    for start in range(0, len(found.runs), RUNS_ABREAST):
        runs = found.runs[start : start + RUNS_ABREAST]
        rows = [*_run_rows(runs), *_quality_rows(runs), *_setting_rows(runs, found.settings)]
        lines += table(("", *(names[run.run] for run in runs)), rows)
        lines.append("")
    if not found.settings:
        lines.insert(-1, "No setting differs.")
    if found.left_out:
        lines.append(f"Left out {counted(len(found.left_out), 'run')}:")
        lines += [f"  {one.reason}" for one in found.left_out]
    lines.append(f"Next: {command('review', *(run.run for run in found.runs[:RUNS_ABREAST]))}")
    return VerbResult(found.model_dump(mode="json"), lines, ok=not found.left_out)


def _short_names(runs: Sequence[str]) -> dict[str, str]:
    """Each run's folder without what all have in common."""
    base = os.path.commonpath([Path(run).parent for run in runs])
    return {run: str(Path(run).relative_to(base)) for run in runs}


def _run_rows(runs: Sequence[RunStatus]) -> list[tuple[str, ...]]:
    stages = [run.current for run in runs]
    known = {stage.on_gpus for run in runs for stage in run.stages} - {None}
    hours = "GPU hours" if known == {True} else "worker hours"
    return [
        ("state", *(stage.state for stage in stages)),
        ("stage", *(stage.stage for stage in stages)),
        ("step", *(f"{stage.step}/{stage.steps}" for stage in stages)),
        ("step of all stages", *(f"{run.step}/{run.steps}" for run in runs)),
        ("left", *(_cell(stage.seconds_left, duration) for stage in stages)),
        ("headline", *(_headline(stage) for stage in stages)),
        ("images/s", *(_cell(stage.images_per_second, "{:.1f}".format) for stage in stages)),
        (hours, *(_cell(run.worker_hours, "{:.4g}".format) for run in runs)),
        ("restarts", *(str(sum(stage.restarts for stage in run.stages)) for run in runs)),
    ]


def _headline(stage: StageStatus) -> str:
    return "-" if stage.headline is None else f"{stage.headline} {stage.headline_value:.4g}"


def _quality_rows(runs: Sequence[RunStatus]) -> list[tuple[str, ...]]:
    """The last validation while training, and the last evaluation of the model."""
    groups = {
        "held out": [run.held_out for run in runs],
        "last evaluation on photos": [run.evaluation for run in runs],
    }
    return [
        row
        for heading, found in groups.items()
        for row in _under(
            heading,
            [
                (name, *(_cell(metrics.get(name), "{:.4g}".format) for metrics in found))
                for name in sorted({name for metrics in found for name in metrics})
            ],
        )
    ]


def _setting_rows(
    runs: Sequence[RunStatus], settings: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, ...]]:
    return _under(
        "settings that differ",
        [
            (name, *(_cell(values.get(run.run), _shortened) for run in runs))
            for name, values in settings.items()
        ],
    )


def _under(heading: str, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows below a row that only names them."""
    return [(heading,), *((f"  {name}", *cells) for name, *cells in rows)] if rows else []


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."


def _cell(value: Found | None, text: Callable[[Found], str]) -> str:
    return "-" if value is None else text(value)


def _stage_cells(stage: StageStatus) -> tuple[str, ...]:
    age = stage.checkpoint_age_seconds
    return (
        stage.stage,
        stage.state,
        f"{stage.step}/{stage.steps}",
        _cell(stage.images_per_second, "{:.1f}".format),
        _cell(stage.seconds_left, duration),
        "-" if age is None else f"step {stage.checkpoint_step}, {duration(age)} ago",
        str(stage.restarts),
    )

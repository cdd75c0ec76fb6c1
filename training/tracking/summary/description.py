"""The pages of a training and of its stages in MLflow, as Markdown: how the stages compare, what to
look at, and the commands that continue and repeat the training. Read from the run's folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from urllib.parse import quote

from datagen.io import storage
from training.run_dir.datasets import read_datasets
from training.run_dir.paths import RunPaths, run_name
from training.run_dir.starts import end_reason
from training.settings.held_out import higher_is_better
from training.settings.initial_weights import REGISTRY, is_registry
from training.settings.recipe import TrainingRecipe
from training.tracking.events import NOTE, Artifact, Event, Tags
from training.tracking.journal import last_values
from training.tracking.provenance import code_tags, launch_tags
from training.tracking.summary.stage_facts import StageFacts, facts_of_stages
from training.tracking.summary.stage_table import (
    EVALUATION,
    Cell,
    Table,
    shown_as_tables,
    stage_table,
)

RISE, PARTS, LEAST_POINTS = 1.2, 10, 50
"""A loss rose if it ends at so many times its lowest tenth; a shorter curve is not judged."""
WORSE, WORSE_LOSS = 0.01, 0.05
"""Shares by which a held-out value, or loss, ends worse than its best, and is worth a look."""
MOST_WAITING = 0.1
"""Share of the time that a worker may wait for data."""
MOST_RESTARTS, MOST_TEXT = 3, 200
"""Restarts that are listed, and characters of a reason: MLflow keeps 5000 of a page."""


def describe_run(recipe: TrainingRecipe, *, ended: bool) -> list[Event]:
    """Writes `stages.json` and `stages.md`; these and the run's page as events.

    Args:
        ended: nothing trains it now.
    """
    run, stages = RunPaths(Path(recipe.output)), facts_of_stages(recipe)
    table = stage_table(recipe, stages)
    files = {run.stage_table: table.to_json(), run.stage_table_text: table.to_markdown().encode()}
    for path, data in files.items():
        storage.write_bytes(str(path), data)
    page = Tags(values={NOTE: run_page_text(recipe, stages, ended=ended)})
    shown = shown_as_tables(run.stage_table.name)
    return [*(Artifact(path=str(path)) for path in files), shown, page]


def run_page_text(recipe: TrainingRecipe, stages: Sequence[StageFacts], *, ended: bool) -> str:
    """The page of a training, of which MLflow shows the first lines at once."""
    parts = [
        _verdict(recipe, stages),
        _headlines(recipe, stages),
        _look_at(recipe, stages, ended=ended),
        _commands(recipe),
    ]
    return "\n\n".join(parts)


def _verdict(recipe: TrainingRecipe, stages: Sequence[StageFacts]) -> str:
    metric, parts = _watched(recipe), []
    measured = [one for one in stages if one.best(metric) is not None]
    if measured:
        values = [value for one in measured if (value := one.best(metric)) is not None]
        best = max(values) if higher_is_better(metric) else min(values)
        last = measured[-1].last(metric)
        parts.append(f"**{metric.removeprefix('val/')} {best:.4g}** at best, {last:.4g} at last")
    hours = sum(one.hours for one in stages)
    parts += [
        f"{sum(one.record is not None for one in stages)} of {len(stages)} stages done",
        f"{sum(one.images for one in stages):,} images",
        f"{hours:.3g} worker hours",
    ]
    if recipe.hourly_price is not None:
        parts.append(f"price {hours * recipe.hourly_price:,.2f}")
    text = f"{', '.join(parts)}. In `{recipe.output}`."
    found = last_values(Path(recipe.output), prefix=f"{EVALUATION}psnr_")
    photos = [f"{name.removeprefix(EVALUATION)} {value:.4g}" for name, value in found.items()]
    return f"{text}\n\nOn photos: {', '.join(photos)}." if photos else text


def _watched(recipe: TrainingRecipe) -> str:
    """The held-out metric by which the training is judged."""
    kept = (stage.best_metric for stage in recipe.stages if stage.best_metric)
    return next(kept, f"val/psnr_{recipe.stages[-1].judged_by}")


def stage_page_text(recipe: TrainingRecipe, stage: StageFacts, *, pictures: str) -> str:
    """The page of a stage.

    Args:
        pictures: what its pictures show.
    """
    settings = stage.settings
    number = recipe.numbered(settings.name).split()[0]
    what = "a LoRA against a discriminator, " if settings.adversarial else ""
    source = recipe.initial_weights_of(settings.name)
    parts = [
        f"Stage {number} of {len(recipe.stages)} of **{run_name(Path(recipe.output))}**: trains "
        f"{what}`{settings.objective.kind}` for {settings.steps:,} steps of "
        f"{settings.images_per_step:g} images at a learning rate of {settings.learning_rate:g}, "
        f"from {_linked(source) if source else 'random weights'}.",
        _headlines(recipe, [stage]),
        _look_at(recipe, [stage], ended=False),
        f"**Pictures by step** are at the end of *Model metrics*: move a card's slider, and open "
        f"the card to see them large. {pictures}",
        f"`{stage.folder.start_table.name}` among the artifacts has each start and its seconds, "
        f"`{stage.folder.stacks.name}` the stacks of a hung worker.",
    ]
    return "\n\n".join(parts)


def _linked(source: str) -> str:
    """What a stage starts from; a version of a registered model opens its page."""
    if not is_registry(source):
        return f"`{source}`"
    name, version = source.removeprefix(REGISTRY).split("/")
    return f"[`{source}`](#/models/{quote(name)}/versions/{version})"


def _headlines(recipe: TrainingRecipe, stages: Sequence[StageFacts]) -> str:
    """A row for each stage, with the columns that any of them has."""
    rows = [_headline(recipe, one) for one in stages]
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    # MLflow draws the columns without room between them.
    cells = (tuple(f"{row[name] or '-'}&emsp;" for name in columns) for row in rows)
    return Table(tuple(f"{name}&emsp;" for name in columns), tuple(cells)).to_markdown().rstrip()


def _headline(recipe: TrainingRecipe, stage: StageFacts) -> dict[str, Cell]:
    metric = _watched(recipe)
    best, last, gain = (
        stage.best(metric),
        stage.last(metric),
        stage.best(f"val/gain_{stage.settings.judged_by}"),
    )
    now = "" if last is None or f"{last:.4g}" == f"{best:.4g}" else f" (last {last:.4g})"
    speed = stage.mean("perf/images_per_second")
    losses = [
        f"{name.removeprefix('loss/')} {series.values[-1]:.3g}"
        for name, series in stage.errors.items()
        if name.startswith("loss/")
    ]
    steps = f"{stage.steps:,}" if stage.record else f"{stage.steps:,} of {stage.settings.steps:,}"
    return {
        "stage": recipe.numbered(stage.settings.name),
        "steps": steps,
        "losses": ", ".join(losses) or None,
        metric.removeprefix("val/"): None if best is None else f"**{best:.4g}**{now}",
        "gain": None if gain is None else f"{gain:+.2f}",
        "images/s": None if speed is None else f"{speed:.4g}",
        "hours": f"{stage.hours:.3g}",
    }


def _look_at(recipe: TrainingRecipe, stages: Sequence[StageFacts], *, ended: bool) -> str:
    found = [f"- **{one.settings.name}** {text}" for one in stages for text in _remarks(one)]
    for one in stages:
        if ended and one.starts and one.record is None:
            reason = _short(end_reason(one.folder))
            found.append(f"- **{one.settings.name}** stopped at step {one.steps:,}: {reason}")
    datasets = read_datasets(recipe)
    if datasets is not None and len(datasets.states) > 1:
        samples = (f"{name} {one.samples}" for name, one in datasets.stages.items())
        text = "samples, and other held-out ones: their quality does not compare"
        found.append(f"- Stages are trained on different data ({', '.join(samples)} {text}).")
    trained = [one for one in stages if one.metrics]
    if trained and not any(name.startswith("val/") for one in trained for name in one.metrics):
        found.append(
            "- Nothing is held out, so quality is not measured: build the dataset with "
            "`validation_fraction=0.02`."
        )
    return "\n".join(["#### **Look at**", *found]) if found else "Nothing stands out."


def _remarks(stage: StageFacts) -> Iterator[str]:
    """What is worth a look, as the rest of a sentence about the stage."""
    skipped, failed = (
        max(stage.metrics[name].values, default=0.0) if name in stage.metrics else 0.0
        for name in ("data/skipped_samples", "checkpoints/failed")
    )
    if skipped:
        yield f"skipped {skipped:g} samples: `{stage.folder.skipped}`"
    if stage.restarts:
        reasons = (
            f"at step {start.step} after: {_short(start.ended_before or 'unknown')}"
            for start in stage.restarts[-MOST_RESTARTS:]
        )
        times = len(stage.restarts)
        yield f"restarted {times} time{'s' if times > 1 else ''}, {'; '.join(reasons)}"
    for name, low, high in _rises(stage):
        yield f"`{name}` rose from {low:.4g} to {high:.4g}"
    held_out = {name: WORSE_LOSS for name in stage.errors if name.startswith("val/")}
    quality = f"val/psnr_{stage.settings.judged_by}"
    for name, limit in {quality: WORSE, **held_out}.items():
        best, last = stage.best(name), stage.last(name)
        if best is not None and last is not None and abs(best - last) > limit * abs(best):
            yield f"`{name}` was {best:.4g} at best and is {last:.4g}"
    waiting = stage.mean("perf/data_wait_fraction") or 0.0
    if waiting > MOST_WAITING:
        yield f"waited for data {waiting:.0%} of the time: `loader_threads`, `cache_gb`"
    if failed:
        problem = stage.progress.problem if stage.progress else ""
        yield f"could not write {failed:g} checkpoints{f': {_short(problem)}' if problem else ''}"


def _rises(stage: StageFacts) -> Iterator[tuple[str, float, float]]:
    """Losses that ended well above their lowest tenth: that, and the last tenth."""
    for name, series in stage.errors.items():
        size = len(series.values) // PARTS
        if not name.startswith("loss/") or size * PARTS < LEAST_POINTS:
            continue
        means = [fmean(series.values[part * size :][:size]) for part in range(PARTS)]
        if means[-1] > RISE * min(means) > 0:
            yield name, min(means), means[-1]


def _commands(recipe: TrainingRecipe) -> str:
    launch, code = launch_tags(), code_tags()
    started = f"Started by {launch['mlflow.user']} with `{_short(launch['command'])}`."
    if type(recipe) is not TrainingRecipe:
        return started  # of a system outside this package, with commands of its own
    written = RunPaths(Path(recipe.output)).recipe
    commands = [
        "# continue, in the same folder",
        f"flowmapsr train {shlex.quote(str(written))}",
        f"# repeat, with {written.name} of the artifacts",
        f"flowmapsr train ./{written.name} output=/new/folder",
    ]
    if "code.commit" in code:
        changed = "  # and changes that are not in it" if code["code.dirty"] == "true" else ""
        commands.insert(3, f"git checkout {code['code.commit']}{changed}")
    return "\n".join(["#### **Again**", started, "", "```bash", *commands, "```"])


def _short(text: str) -> str:
    return shorten(text.replace("`", "'").replace("|", "/"), MOST_TEXT, placeholder=" ...")

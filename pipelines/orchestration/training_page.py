"""What a training shows on the page of its Prefect run; all of it is read from the run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import artifacts

from datagen.io import storage
from pipelines.orchestration.artifacts import Seen, add_picture, progress_artifact, tell
from pipelines.orchestration.guard import artifact_slug
from pipelines.orchestration.run_report import say
from pipelines.terminal.text import counted, duration
from training.run_dir.paths import RunPaths, StagePaths, finished_stages, stage_paths
from training.run_dir.records import StageRecord
from training.run_dir.starts import count_restarts, read_progress
from training.settings.recipe import TrainingRecipe
from training.tracking.mlflow_client import run_page


@contextmanager
def training_page(recipe: TrainingRecipe) -> Iterator[None]:
    """Shows plan and progress of a training for the length of the block, and then what it did."""
    begin, was_done = time.monotonic(), finished_stages(recipe) is not None
    before = _steps_done(recipe)
    stages = ", ".join(f"{stage.name} {stage.steps}" for stage in recipe.stages)
    say(f"plan: steps of {stages}; {before} of {_total(recipe)} are done")
    with progress_artifact(lambda: _seen(recipe), artifact_slug(recipe.output)):
        yield
    records = finished_stages(recipe)
    if records is None:
        return
    message = training_message(recipe, records, was_done=was_done)
    if was_done:
        tell(message)
        return
    trained, seconds = _total(recipe) - before, time.monotonic() - begin

    def add() -> None:
        name = artifact_slug(recipe.output)
        text = summary(recipe, records, message, trained=trained, seconds=seconds)
        artifacts.create_markdown_artifact(text, key=f"{name}-summary", description=message)
        picture = _newest_picture(recipe)
        if picture is not None:
            data = storage.read_bytes(str(picture))
            add_picture(data, key=f"{name}-pictures", description=f"`{picture}`")

    tell(message, add)


def training_message(
    recipe: TrainingRecipe, records: Sequence[StageRecord], *, was_done: bool = False
) -> str:
    """`warmup 360/360, distill 100/100; model in /runs/one/stages/distill/model`."""
    model = storage.join(recipe.output, records[-1].model)
    if was_done:
        return f"nothing new, all stages are done; model in {model}"
    steps = {stage.name: stage.steps for stage in recipe.stages}
    done = ", ".join(f"{one.stage} {one.steps}/{steps[one.stage]}" for one in records)
    return f"{done}; model in {model}"


def summary(
    recipe: TrainingRecipe,
    records: Sequence[StageRecord],
    message: str,
    *,
    trained: int,
    seconds: float,
) -> str:
    """A run that has finished a training, and the table of its stages."""
    run = RunPaths(Path(recipe.output))
    restarts = sum(count_restarts(stage) for stage in stage_paths(recipe))
    lines = [
        f"# {recipe.output}",
        "",
        f"**{message}** in {duration(seconds)}.",
        "",
        "| | |",
        "|---|---|",
        f"| steps by this run | {trained} of {_total(recipe)} |",
        f"| restarts of all runs | {restarts} |",
        f"| dataset | `{recipe.manifest}` |",
        f"| digest of the dataset | `{records[-1].dataset_digest}` |",
        f"| MLflow run | {run_page(run.root) or f'its ID is in `{run.mlflow}`'} |",
        "",
    ]
    if run.stage_table_text.is_file():
        lines.append(run.stage_table_text.read_text(encoding="utf-8"))
    return "\n".join(lines)


def _seen(recipe: TrainingRecipe) -> Seen:
    """How far all stages are together, and the one that is trained."""
    done, total = _steps_done(recipe), _total(recipe)
    text = f"{done} of {counted(total, 'step')}"
    for stage, paths in zip(recipe.stages, stage_paths(recipe), strict=True):
        progress = read_progress(paths)
        if paths.done.is_file() or progress is None:
            continue
        left = progress.seconds_left(stage.images_per_step)
        text += f"; {stage.name}: step {progress.step} of {progress.steps}, "
        text += f"{progress.headline} {progress.headline_value:.4g}, "
        text += f"{progress.images_per_second:.1f} images/s"
        text += f", {duration(left)} left" if left else ""
    return Seen(done, 100 * done / total, text)


def _steps_done(recipe: TrainingRecipe) -> int:
    pairs = zip(recipe.stages, stage_paths(recipe), strict=True)
    return sum(stage.steps if paths.done.is_file() else _step(paths) for stage, paths in pairs)


def _step(stage: StagePaths) -> int:
    progress = read_progress(stage)
    return progress.step if progress else 0


def _total(recipe: TrainingRecipe) -> int:
    return sum(stage.steps for stage in recipe.stages)


def _newest_picture(recipe: TrainingRecipe) -> Path | None:
    """The last picture of samples of the last stage that has one."""
    for stage in reversed(stage_paths(recipe)):
        if pictures := sorted(stage.images.glob("step-*.png")):
            return pictures[-1]
    return None

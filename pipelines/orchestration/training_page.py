"""What a training shows on the page of its Prefect run; all of it is read from the run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datagen.io import storage
from pipelines.orchestration.run_page import Progress, progress_shown, show_end
from pipelines.orchestration.run_report import say, tell
from pipelines.terminal.text import counted, duration
from training.run_dir.paths import RunPaths, finished_stages, stage_paths
from training.run_dir.records import StageRecord
from training.run_dir.starts import read_progress, restarts
from training.settings.recipe import TrainingRecipe
from training.tracking.store.run_names import run_page
from training.tracking.summary.ending import ending_lines
from training.tracking.summary.stage_table import Table
from training.tracking.unsent import unsent_events, unsent_lines


@contextmanager
def training_page(recipe: TrainingRecipe) -> Iterator[None]:
    """Shows plan and progress of a training for the length of the block, and then what it did."""
    begin, was_done = time.monotonic(), finished_stages(recipe) is not None
    before = _steps_done(recipe)
    stages = ", ".join(f"{stage.name} {stage.steps}" for stage in recipe.stages)
    say(f"plan: steps of {stages}; {before} of {_total(recipe)} are done")
    with progress_shown(recipe.output, lambda: _progress(recipe)):
        yield
    records = finished_stages(recipe)
    if was_done:
        tell("nothing new, all stages are done")
    elif records is not None:
        for line in ending_lines(Path(recipe.output)):
            say(line.strip())
        steps = {stage.name: stage.steps for stage in recipe.stages}
        message = ", ".join(f"{one.stage} {one.steps}/{steps[one.stage]}" for one in records)
        trained, seconds = _steps_done(recipe) - before, time.monotonic() - begin
        text = _summary(recipe, records, message, trained=trained, seconds=seconds)
        show_end(recipe.output, message, text, _newest_pictures(recipe))


def _summary(
    recipe: TrainingRecipe,
    records: Sequence[StageRecord],
    message: str,
    *,
    trained: int,
    seconds: float,
) -> str:
    """A run that has finished a training, and the table of its stages, in Markdown."""
    run = RunPaths(Path(recipe.output))
    facts = (
        ("time", duration(seconds)),
        ("steps by this run", f"{trained} of {_total(recipe)}"),
        ("restarts of all runs", sum(len(restarts(stage)) for stage in stage_paths(recipe))),
        ("dataset", ", ".join(f"`{place}`" for place in recipe.places)),
        ("digest of the dataset", f"`{records[-1].dataset_digest}`"),
        ("model", f"`{storage.join(recipe.output, records[-1].model)}`"),
        ("MLflow run", run_page(run.root) or f"its ID is in `{run.mlflow}`"),
    )
    stages = run.stage_table_text
    return "\n".join(
        [
            Table(("this run", message), facts).to_markdown(),
            *unsent_lines(unsent_events(recipe), again="run this again"),
            stages.read_text(encoding="utf-8") if stages.is_file() else "",
        ]
    )


def _progress(recipe: TrainingRecipe) -> Progress:
    """How far all stages are together, and the one that is trained."""
    done, total = _steps_done(recipe), _total(recipe)
    text = f"{done} of {counted(total, 'step')}"
    for stage, paths in zip(recipe.stages, stage_paths(recipe), strict=True):
        progress = read_progress(paths)
        if paths.done.is_file() or progress is None:
            continue
        left = progress.seconds_left(stage.images_per_step)
        text += f"; {stage.name}: step {progress.step} of {stage.steps}, "
        text += progress.stands_still(time.time() - progress.updated) or progress.note
        text += f", {duration(left)} left" if left else ""
    return 100 * done / total, text


def _steps_done(recipe: TrainingRecipe) -> int:
    """Of all stages; one that is done counts whole, also if it stopped early."""
    steps = 0
    for stage, paths in zip(recipe.stages, stage_paths(recipe), strict=True):
        progress = read_progress(paths)
        steps += stage.steps if paths.done.is_file() else progress.step if progress else 0
    return steps


def _total(recipe: TrainingRecipe) -> int:
    return sum(stage.steps for stage in recipe.stages)


def _newest_pictures(recipe: TrainingRecipe) -> list[str]:
    """The last pictures of samples, a file each, of the last stage that has some."""
    for stage in reversed(stage_paths(recipe)):
        if found := sorted(stage.images.glob("pictures-*.png")):
            step = max(path.stem.rpartition("-")[2] for path in found)
            return [str(path) for path in found if path.stem.endswith(f"-{step}")]
    return []

"""The whole story on one page: photos -> dataset -> trained stages -> evaluation. Every part skips
what is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import flow

from datagen.build.survey import survey
from datagen.photos.sources import list_sources
from datagen.records import FrozenModel
from pipelines.cluster.ray_session import ray_cluster
from pipelines.environment import keep_tracking
from pipelines.flows.dataset import run_build
from pipelines.flows.training import run_training
from pipelines.orchestration.guard import is_deployed, run_recipe, station
from pipelines.recipes.full_recipe import FullRecipe
from training.run_dir.records import FLOWMAPSR, EvaluationRow
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe
from training.tracking.parent_run import comparison
from training.tracking.tracker import Tracker

NAME = "full"
RUN_NAME = "{recipe.output}"


class FullRecord(FrozenModel):
    """What a full run leaves behind, for `report.json`."""

    rows: tuple[EvaluationRow, ...]
    seconds: dict[str, float]
    """Wall time of each station."""


class Stopwatch:
    """Wall seconds of named stations."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def station(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 3)


@flow(name=NAME, flow_run_name=RUN_NAME)
def full(recipe: FullRecipe) -> FullRecord:
    """Photos to an evaluated model; run it again to continue where it stopped."""
    return _full(recipe)


def run_full(recipe: FullRecipe) -> FullRecord:
    """`full` for a command: once begun, it ends well even if Prefect does not."""
    return run_recipe(recipe, lambda: _full(recipe), name=NAME, run_name=RUN_NAME)


def _full(recipe: FullRecipe) -> FullRecord:
    keep_tracking(recipe.output, worker=is_deployed())
    watch = Stopwatch()
    with ray_cluster(cpus=max(recipe.dataset.least_workers, recipe.training.most_workers)):
        with watch.station("dataset"):
            listing = list_sources(recipe.dataset.sources, exclude=recipe.dataset.output)
            if survey(recipe.dataset, listing).complete is None:
                run_build(recipe.dataset, listing)
        with watch.station("training"):
            run_training(recipe.training)
    with watch.station("evaluation"):
        rows = station("evaluate", lambda: evaluate_run(recipe.training, recipe.evaluation))
    return FullRecord(rows=tuple(rows), seconds=watch.seconds)


def evaluate_run(training: TrainingRecipe, settings: EvaluationSettings) -> list[EvaluationRow]:
    """The last stage's model on held-out photos, as a table and as metrics of the run in MLflow."""
    from training.evaluation.evaluate import evaluate  # heavy: not before it is needed

    rows = evaluate(training.output, settings)
    tracker = Tracker(Path(training.output), experiment=training.experiment)
    metrics: dict[str, float] = {}
    for row in rows:
        name = f"nfe{row.steps}" if row.method == FLOWMAPSR else row.method
        metrics[f"val/psnr_x{row.scale:g}_{name}"] = row.psnr
        metrics[f"val/ssim_x{row.scale:g}_{name}"] = row.ssim
    tracker.metrics(training.stages[-1].steps, metrics)
    for event in comparison(training):
        tracker.write(event)
    tracker.close("FINISHED")
    return rows

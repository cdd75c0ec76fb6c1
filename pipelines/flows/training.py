"""The flow from dataset to trained model: one task a stage, each skipping what is done already.

All stages are trained by one group of workers; a Prefect that fails in the middle stops none.
"""

from __future__ import annotations

from functools import partial

from prefect import flow

from pipelines.cluster.train_launcher import TrainingWorkers, training_workers
from pipelines.environment import keep_tracking
from pipelines.orchestration.guard import is_deployed, run_recipe, station
from training.preflight import check_run
from training.run_dir.lock import run_lock
from training.run_dir.paths import write_recipe
from training.run_dir.records import StageRecord
from training.settings.recipe import TrainingRecipe
from training.tracking.parent_run import ParentRun, parent_run

NAME = "train"
RUN_NAME = "{recipe.output}"


@flow(name=NAME, flow_run_name=RUN_NAME)
def train(recipe: TrainingRecipe) -> list[StageRecord]:
    """Trains every stage in order; run it again to continue from the last checkpoint."""
    return _train(recipe, take_over=False)


def run_training(recipe: TrainingRecipe, *, take_over: bool = False) -> list[StageRecord]:
    """`train` for a command: once begun, it ends well even if Prefect does not.

    Args:
        take_over: take the run's folder from a training that holds it, whether alive or not.

    Raises:
        FlowmapsrError: Prefect cannot start the run, another training holds the folder, or a stage
            cannot go on.
    """
    return run_recipe(
        recipe, lambda: _train(recipe, take_over=take_over), name=NAME, run_name=RUN_NAME
    )


def _train(recipe: TrainingRecipe, *, take_over: bool) -> list[StageRecord]:
    keep_tracking(recipe.output, worker=is_deployed())
    with run_lock(recipe, take_over=take_over) as lock:
        station("prepare", lambda: _prepare(recipe))
        with parent_run(recipe) as parent, training_workers(recipe, lock) as workers:
            names = [stage.name for stage in recipe.stages]
            return [station(name, partial(_finished, name, workers, parent)) for name in names]


def _finished(name: str, workers: TrainingWorkers, parent: ParentRun) -> StageRecord:
    record = workers.finished(name)
    parent.compare_stages()
    return record


def _prepare(recipe: TrainingRecipe) -> None:
    check_run(recipe)
    write_recipe(recipe)

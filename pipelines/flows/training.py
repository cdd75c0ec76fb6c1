"""The flow from dataset to trained model: one task a stage, each skipping what is already done.

All stages are trained by one group of workers.
"""

from __future__ import annotations

from functools import partial

from prefect import flow

from pipelines.cluster.train_launcher import training_workers
from pipelines.environment import default_tracking_uri
from pipelines.orchestration.guard import is_deployed, task_step
from pipelines.orchestration.run_report import reported
from pipelines.orchestration.training_page import training_page
from pipelines.terminal.doing import doing
from training.monitoring.json_log import at_work_on
from training.prepare import prepare_run
from training.run_dir.lock import run_lock
from training.run_dir.records import StageRecord
from training.settings.recipe import TrainingRecipe
from training.tracking.parent_run import parent_run


@flow(name="training", flow_run_name="{recipe.output}")
@reported
def train(recipe: TrainingRecipe) -> list[StageRecord]:
    """Trains every stage in order; run it again to continue from the last checkpoint.

    Args:
        recipe: The dataset, the model, the stages to train, and where the run is written.
    """
    return train_stages(recipe)


def train_stages(
    recipe: TrainingRecipe,
    *,
    take_over: bool = False,
    newer_data: bool = False,
    redo_later: bool = False,
) -> list[StageRecord]:
    """Trains the stages that are not finished.

    `take_over` takes the run folder from the training that holds it, even a running one;
    `newer_data` trains stages that have not begun on the dataset as it is now, and `redo_later`
    those anew that grew from weights of a stage which is trained further.

    Raises:
        FlowmapsrError: another training holds the folder, or a stage cannot continue.
    """
    at_work_on(run=recipe.output, dataset=recipe.datasets_label)
    default_tracking_uri(recipe.output, worker=is_deployed())
    with run_lock(recipe, take_over=take_over) as lock:
        doing("preparing the training")
        prepare = partial(prepare_run, recipe, newer_data=newer_data, redo_later=redo_later)
        task_step("prepare", prepare)
        with (
            training_page(recipe),
            parent_run(recipe),
            training_workers(recipe, lock) as workers,
        ):
            names = [stage.name for stage in recipe.stages]
            return [task_step(name, partial(workers.finished, name)) for name in names]

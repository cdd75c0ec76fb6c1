"""A run's folder made ready to train: checked, with its recipe, and with the stages open that are
trained further or anew.

Only for the process that holds the folder's lock.
"""

from __future__ import annotations

import logging
from pathlib import Path

from datagen.errors import FlowmapsrError
from training.preflight import check_run
from training.run_dir.datasets import plan_datasets, write_datasets
from training.run_dir.further import (
    LaterStage,
    aside,
    checkpoints_of,
    on_old_weights,
    redo_command,
    set_aside,
)
from training.run_dir.paths import StagePaths
from training.run_dir.recipe_guard import stages_going_on, write_recipe
from training.settings.recipe import TrainingRecipe
from training.tracking.tracker import reset_tracking, supersede

log = logging.getLogger(__name__)


def prepare_run(
    recipe: TrainingRecipe, *, newer_data: bool = False, redo_later: bool = False
) -> None:
    """Makes the folder ready for a start.

    Args:
        newer_data: stages that have not begun take the dataset as it is now.
        redo_later: stages that grew from weights of a stage which is trained further are set aside
            and trained anew; else they stay as they are, which is said.

    Raises:
        FlowmapsrError: the recipe is not the folder's or cannot be trained.
    """
    check_run(recipe, newer_data=newer_data)
    going_on = stages_going_on(recipe)
    for stage in going_on:
        _require_checkpoint(recipe, stage)
    later = on_old_weights(recipe, going_on=going_on)
    if redo_later:
        for one in later:
            _set_aside(recipe, one)
    write_recipe(recipe, on_replace=reset_tracking)
    write_datasets(recipe, plan_datasets(recipe, newer_data=newer_data))
    for one in later if not redo_later else ():
        log.warning("%s, and is kept; to train it anew: %s", one, redo_command(recipe))


def _set_aside(recipe: TrainingRecipe, later: LaterStage) -> None:
    stage = StagePaths(Path(recipe.output), later.stage)
    kept = aside(stage)
    supersede(stage, kept, why=f"trained anew, as {later.grew_from.stage} was trained further")
    set_aside(stage, kept, later.grew_from)
    log.warning("%s: it is trained anew, and what it was is kept in %s", later, kept.root)


def _require_checkpoint(recipe: TrainingRecipe, stage: StagePaths) -> None:
    from training.checkpoints.folders import CheckpointFolders  # imports torch

    uri = checkpoints_of(recipe, stage)
    if not any(one.is_committed for one in CheckpointFolders(uri, 1, None).all()):
        raise FlowmapsrError(
            f"stages.{stage.name}.steps: the stage is finished, and there is no checkpoint left in "
            f"{uri} to train it further from; bring them back, or repeat the old number"
        )

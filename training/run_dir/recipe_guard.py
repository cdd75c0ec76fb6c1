"""Keeps a run folder to one recipe: refuses another one once the first has begun to train."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import Change, diff, read_record
from training.run_dir.paths import RunPaths, StagePaths
from training.settings.recipe import TrainingRecipe
from training.settings.stage import CORRECTABLE

log = logging.getLogger(__name__)


def check_recipe(recipe: TrainingRecipe) -> None:
    """Refuses a run folder in which another recipe has begun to train.

    Correctable settings may differ in stages that are not finished.

    Raises:
        FlowmapsrError: naming the settings that differ, or the old recipe cannot be read.
    """
    wrong = [change for change in _changes(recipe) if not _is_correction(change, recipe)]
    if wrong and _has_begun(recipe):
        raise FlowmapsrError(
            f"{recipe.output} holds a run of another recipe (different: "
            f"{', '.join(map(str, wrong))}); choose another output, or repeat the old settings to "
            "resume"
        )


def write_recipe(recipe: TrainingRecipe, *, on_replace: Callable[[Path], None]) -> None:
    """Writes the recipe into its run folder, after `check_recipe`.

    Args:
        on_replace: called with the folder before a recipe that has not begun to train is replaced:
            what was logged of it cannot be changed.
    """
    run = RunPaths(Path(recipe.output))
    changes = _changes(recipe)
    if changes and not _has_begun(recipe):
        on_replace(run.root)
    elif changes:
        log.warning("the run continues with other settings: %s", ", ".join(map(str, changes)))
    storage.write_bytes(str(run.recipe), recipe.model_dump_json(indent=2).encode())


def _is_correction(change: Change, recipe: TrainingRecipe) -> bool:
    """Whether a run that has begun may continue with the change."""
    first, _, rest = change.name.partition(".")
    stage, _, field = rest.partition(".")
    if first != "stages" or field.split(".")[0] not in CORRECTABLE:
        return False
    return StagePaths(Path(recipe.output), stage).finished_record() is None


def _changes(recipe: TrainingRecipe) -> list[Change]:
    """Content that differs from the recipe in the run folder, if there is one."""
    remedy = "remove it, and the command that made this run writes it again"
    path = RunPaths(Path(recipe.output)).recipe
    written = read_record(path, type(recipe), remedy=remedy)
    if written is None:
        return []
    stages = [", ".join(stage.name for stage in one.stages) for one in (written, recipe)]
    if stages[0] != stages[1]:
        return [Change("stages", *stages)]
    return diff(_with_named_stages(written), _with_named_stages(recipe))


def _with_named_stages(recipe: TrainingRecipe) -> dict[str, Any]:
    content = recipe.content()
    return content | {"stages": {stage["name"]: stage for stage in content["stages"]}}


def _has_begun(recipe: TrainingRecipe) -> bool:
    """Whether any stage in the folder, of whichever recipe, reached its first step."""
    run = RunPaths(Path(recipe.output))
    stages = [StagePaths(run.root, folder.name) for folder in run.stages.glob("*")]
    return any(stage.starts.exists() or stage.done.exists() for stage in stages)

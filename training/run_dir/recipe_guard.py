"""Keeps a run folder to one recipe: refuses another one once the first has begun to train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import Change, diff, read_record
from training.run_dir.further import goes_on, on_old_weights, reopen
from training.run_dir.paths import RunPaths, StagePaths, stage_paths
from training.run_dir.starts import read_progress
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings, learning_rate

log = logging.getLogger(__name__)


def check_recipe(recipe: TrainingRecipe) -> None:
    """Refuses a run folder in which another recipe has begun to train.

    Correctable settings may differ in stages that are not finished, or are not with them.

    Raises:
        FlowmapsrError: naming the settings that differ, or the old recipe cannot be read.
    """
    if not _has_begun(recipe):
        return
    _refuse(recipe, _changes(recipe, fixed=True))
    for stage in recipe.stages:
        _check_steps(recipe, stage)
    _refuse(recipe, [change for change in _changes(recipe) if not _is_correction(change, recipe)])


def write_recipe(recipe: TrainingRecipe, *, on_replace: Callable[[Path], None]) -> None:
    """Writes the recipe into its run folder, after `check_recipe`; a finished stage that has more
    steps in it is unfinished from then on.

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
        _tell_schedules(recipe)
    for stage in stages_going_on(recipe):
        reopen(recipe, stage)
    storage.write_bytes(str(run.recipe), recipe.model_dump_json(indent=2).encode())


def asks_for_more(recipe: TrainingRecipe, *, redo_later: bool) -> bool:
    """Whether there is work in a run whose stages are all finished."""
    return bool(stages_going_on(recipe)) or (redo_later and bool(on_old_weights(recipe)))


def stages_going_on(recipe: TrainingRecipe) -> list[StagePaths]:
    """The finished stages of the run folder that the recipe trains further."""
    before = _settings_before(recipe)
    return [
        stage
        for stage in stage_paths(recipe)
        if (record := stage.finished_record()) is not None
        and goes_on(recipe.stage(stage.name), record, before.get(stage.name))
    ]


def _refuse(recipe: TrainingRecipe, wrong: Sequence[Change]) -> None:
    if wrong:
        raise FlowmapsrError(
            f"{recipe.output} holds a run of another recipe (different: "
            f"{', '.join(map(str, wrong))}); choose another output, or repeat the old settings to "
            "resume"
        )


def _check_steps(recipe: TrainingRecipe, stage: StageSettings) -> None:
    """Raises FlowmapsrError for fewer steps than are done, or other steps that change nothing."""
    field, done = f"stages.{stage.name}.steps", _steps_done(recipe, stage.name)
    if stage.steps < done:
        raise FlowmapsrError(
            f"{field} = {stage.steps} is less than the {done} steps that are done in "
            f"{recipe.output}; give at least {done}, or another output to train it anew"
        )
    before = _settings_before(recipe).get(stage.name)
    record = StagePaths(Path(recipe.output), stage.name).finished_record()
    if record is None or before is None or before.steps == stage.steps:
        return
    if record.ended_by is None:
        raise FlowmapsrError(
            f"{field} was {before.steps}, is {stage.steps}: an older version of flowmapsr has "
            "finished this stage, and it cannot be trained further; repeat the old steps"
        )
    if not goes_on(stage, record, before):
        raise FlowmapsrError(
            f"{field} was {before.steps}, is {stage.steps}: the stage {record.ended}, which other "
            "steps do not change; repeat the old ones, or change "
            f"stages.{stage.name}.{record.ended_by} to train it further"
        )


def _steps_done(recipe: TrainingRecipe, name: str) -> int:
    """From where a stage would go on."""
    folder = StagePaths(Path(recipe.output), name)
    record, progress = folder.finished_record(), read_progress(folder)
    if record is not None:
        return record.steps
    return progress.checkpoint_step if progress else 0


def _tell_schedules(recipe: TrainingRecipe) -> None:
    """A line for each stage that goes on with another number of steps."""
    before = _settings_before(recipe)
    for stage in recipe.stages:
        done = _steps_done(recipe, stage.name)
        if done and before[stage.name].steps != stage.steps:
            log.warning(
                "stage %r goes on from step %d to %d, on the learning rates of a stage of that "
                "length: %.4g at first, %.4g at the end",
                *(stage.name, done, stage.steps),
                *(learning_rate(stage, done), learning_rate(stage, stage.steps - 1)),
            )


def _settings_before(recipe: TrainingRecipe) -> dict[str, StageSettings]:
    """Of the stages, in the run folder."""
    written = _written(recipe)
    return {} if written is None else {stage.name: stage for stage in written.stages}


def _is_correction(change: Change, recipe: TrainingRecipe) -> bool:
    """Whether a run that has begun may continue with the change, of a correctable setting."""
    _, name, _ = change.name.split(".", 2)
    stage = StagePaths(Path(recipe.output), name)
    return stage.finished_record() is None or name in [one.name for one in stages_going_on(recipe)]


def _changes(recipe: TrainingRecipe, *, fixed: bool = False) -> list[Change]:
    """Content that differs from the recipe in the run folder, if there is one.

    Args:
        fixed: only what stays the same from the first step on.
    """
    written = _written(recipe)
    if written is None:
        return []
    stages = [", ".join(stage.name for stage in one.stages) for one in (written, recipe)]
    if stages[0] != stages[1]:
        return [Change("stages", *stages)]
    return diff(*(_with_named_stages(one.content(fixed=fixed)) for one in (written, recipe)))


def _written(recipe: TrainingRecipe) -> TrainingRecipe | None:
    """The recipe in the run folder."""
    remedy = "remove it, and the command that made this run writes it again"
    return read_record(RunPaths(Path(recipe.output)).recipe, type(recipe), remedy=remedy)


def _with_named_stages(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"stages": {stage["name"]: stage for stage in content["stages"]}}


def _has_begun(recipe: TrainingRecipe) -> bool:
    """Whether any stage in the folder, of whichever recipe, reached its first step."""
    run = RunPaths(Path(recipe.output))
    stages = [StagePaths(run.root, folder.name) for folder in run.stages.glob("*")]
    return any(stage.starts.exists() or stage.done.exists() for stage in stages)

"""Finished stages that are trained further, and the later ones that grew from their old weights.

Such a later stage stays as it is, until it is set aside to be trained anew.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.paths import (
    FILES_JOURNAL,
    PICTURES_JOURNAL,
    RunPaths,
    StagePaths,
    stage_paths,
)
from training.run_dir.records import StageRecord, StageWeights
from training.run_dir.starts import append_line, read_lines, read_starts
from training.settings.initial_weights import is_stage
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings


class SetAside(FrozenModel):
    """A line of `set_aside.jsonl`: a stage that was kept elsewhere, to be trained anew."""

    time: float
    stage: str
    kept: str
    """The name of its folder now."""
    grew_from: StageWeights
    journals: dict[str, int]
    """Sizes of the run's journals then, in bytes: files that they name before are kept ones."""


class LaterStage(NamedTuple):
    """A stage that rests on weights which the earlier stage does not have any more."""

    stage: str
    grew_from: StageWeights

    def __str__(self) -> str:
        return f"{self.stage} rests on the old weights of {self.grew_from}"


def goes_on(stage: StageSettings, record: StageRecord, before: StageSettings | None) -> bool:
    """Whether a finished stage is not finished with other settings: it has more steps, and what
    ended it were its steps, or is another setting now.

    Args:
        before: its settings when it ended, if known.
    """
    if stage.steps <= record.steps or record.ended_by is None:
        return False
    if record.ended_by == "steps":
        return True
    what = attrgetter(record.ended_by)
    return before is not None and bool(what(before) != what(stage))


def reopen(recipe: TrainingRecipe, stage: StagePaths) -> None:
    """Makes a finished stage an unfinished one; its model stays until it has another one.

    The stages that grew from it keep the weights that they began with: what they do not train is
    not in their checkpoints.
    """
    for later in _begun_on(recipe, stage.name):
        keep_first_weights(stage.model, later)
    stage.done.unlink()


def keep_first_weights(model: Path, stage: StagePaths) -> None:
    """Keeps the model that a stage has begun with in the stage's folder, if it is not there."""
    if not stage.first_weights.is_dir():
        partial = stage.first_weights.with_name(f".{stage.first_weights.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial, copy_function=_link_or_copy)
        partial.rename(stage.first_weights)


def _begun_on(recipe: TrainingRecipe, source: str) -> Iterator[StagePaths]:
    for stage in stage_paths(recipe):
        if recipe.initial_weights_of(stage.name) == source and read_starts(stage):
            yield stage


def _link_or_copy(source: str, target: str) -> None:
    """The files of a model are replaced, never changed, so that a hard link is as good."""
    try:
        os.link(source, target)
    except OSError:  # not on this file system
        shutil.copy2(source, target)


def first_weights_of(recipe: TrainingRecipe, stage: StagePaths) -> StageWeights | None:
    """The weights of an earlier stage that a stage would begin with now; None for others."""
    source = recipe.initial_weights_of(stage.name)
    if source is None or not is_stage(source):
        return None
    if stage.first_weights.is_dir():
        return read_starts(stage)[-1].grew_from
    record = StagePaths(stage.run, source).finished_record()
    return None if record is None else record.weights


def on_old_weights(
    recipe: TrainingRecipe, *, going_on: Sequence[StagePaths] = ()
) -> list[LaterStage]:
    """The stages that have begun with weights which the earlier stage has no more, as it is or was
    trained further, and those that grew from such stages.

    Args:
        going_on: finished stages that are about to be trained further.
    """
    gone = {stage.name for stage in going_on}
    found: list[LaterStage] = []
    for stage in stage_paths(recipe):
        starts = read_starts(stage)
        grew_from = starts[-1].grew_from if starts else None
        if grew_from is None:
            continue
        if grew_from.stage in gone or not _has(recipe, grew_from):
            gone.add(stage.name)
            found.append(LaterStage(stage.name, grew_from))
    return found


def redo_command(recipe: TrainingRecipe) -> str:
    """What trains stages on old weights anew."""
    path = RunPaths(Path(recipe.output)).recipe
    return f"flowmapsr train {shlex.quote(str(path))} --redo-later"


def _has(recipe: TrainingRecipe, weights: StageWeights) -> bool:
    """Whether a stage has these weights, or will have them as it takes no more steps."""
    record = StagePaths(Path(recipe.output), weights.stage).finished_record()
    if record is None:
        return recipe.stage(weights.stage).steps == weights.step
    return record.checkpoint == weights.checkpoint


def aside(stage: StagePaths) -> StagePaths:
    """Where a stage would be kept now: in `distill.1`, the next time in `distill.2`."""
    return StagePaths(stage.run, f"{stage.name}.{_times_set_aside(stage) + 1}")


def set_aside(stage: StagePaths, kept: StagePaths, grew_from: StageWeights) -> None:
    """Moves a stage to `kept`, so that it is trained anew."""
    files = (stage.run / name for name in (FILES_JOURNAL, PICTURES_JOURNAL))
    line = SetAside(
        time=time.time(),
        stage=stage.name,
        kept=kept.name,
        grew_from=grew_from,
        journals={file.name: file.stat().st_size for file in files if file.is_file()},
    )
    stage.root.rename(kept.root)
    append_line(RunPaths(stage.run).set_aside, line)


def place_in_run(run: Path, file: Path, *, journal: str, offset: int) -> Path:
    """Where a file is that a line of one of the run's journals names: in the folder of its stage,
    or where that stage was set aside since.

    Args:
        offset: of the line, in bytes.
    """
    for line in read_lines(RunPaths(run).set_aside, SetAside):
        stage, kept = (StagePaths(run, name).root for name in (line.stage, line.kept))
        if file.is_relative_to(stage) and offset < line.journals.get(journal, 0):
            return kept / file.relative_to(stage)
    return file


def stages_set_aside(recipe: TrainingRecipe) -> list[StagePaths]:
    """The folders of stages that were set aside, which are still there."""
    return [kept for stage in stage_paths(recipe) for kept in _kept(stage)]


def tracked_folders(recipe: TrainingRecipe) -> list[Path]:
    """The folders with an MLflow run of their own: the run's, and those of all stages."""
    stages = [*stage_paths(recipe), *stages_set_aside(recipe)]
    return [Path(recipe.output), *(stage.root for stage in stages)]


def checkpoints_of(recipe: TrainingRecipe, stage: StagePaths) -> str:
    """Folder or prefix of a stage's checkpoints. One outside the run's folder cannot be moved with
    the stage, so each time that it is trained anew has its own."""
    if recipe.checkpoints is None:
        return str(stage.checkpoints)
    times = _times_set_aside(stage)
    return storage.join(recipe.checkpoints, f"{stage.name}.{times + 1}" if times else stage.name)


def _times_set_aside(stage: StagePaths) -> int:
    """Also where the folder was removed since, or a kill has prevented the line."""
    lines = read_lines(RunPaths(stage.run).set_aside, SetAside)
    names = {line.kept for line in lines if line.stage == stage.name}
    names |= {kept.name for kept in _kept(stage)}
    return max((int(name.rpartition(".")[2]) for name in names), default=0)


def _kept(stage: StagePaths) -> list[StagePaths]:
    """The folders of a stage that was set aside, those that are still there."""
    folders = stage.root.parent.glob(f"{stage.name}.*")
    return [StagePaths(stage.run, folder.name) for folder in sorted(folders)]

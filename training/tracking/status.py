"""Reads the progress of a training run from its folder; needs no server."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Literal

from datagen.errors import FlowmapsrError
from datagen.io.lock import TRAINING, living_owner
from datagen.io.lock_owner import LockOwner
from datagen.records import FrozenModel, read_record
from training.run_dir.paths import RECIPE, StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import count_restarts, end_reason, read_end
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import read_metrics
from training.tracking.stage_table import last_validation

SPEED = "perf/images_per_second"

State = Literal["done", "running", "stopped", "waiting"]


class StageStatus(FrozenModel):
    """Progress of one stage; what is not known is null."""

    stage: str
    state: State
    step: int
    steps: int
    images_per_second: float | None = None
    """Recent speed; of a finished stage, the average."""
    seconds_left: float | None = None
    headline: str | None = None
    """The term that the stage is watched by, named as in MLflow."""
    headline_value: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    restarts: int = 0
    ended: str | None = None
    """Why it stopped, where that is known."""
    problem: str | None = None
    """Why the last checkpoint could not be written."""
    validation: dict[str, float] = {}
    """The last values of `val/...`."""


class RunStatus(FrozenModel):
    run: str
    stages: tuple[StageStatus, ...]

    @property
    def done(self) -> bool:
        return all(stage.state == "done" for stage in self.stages)

    @property
    def current(self) -> StageStatus:
        """The first stage that is not done, else the last."""
        unfinished = [stage for stage in self.stages if stage.state != "done"]
        return unfinished[0] if unfinished else self.stages[-1]


def find_runs(folder_or_parent: str) -> tuple[Path, ...]:
    """The run with this folder, or all runs with folders in it (e.g. of a demo).

    Raises:
        FlowmapsrError: there is none.
    """
    folder = Path(folder_or_parent).expanduser().absolute()
    if (folder / RECIPE).is_file():
        return (folder,)
    patterns = (f"*/{RECIPE}", f"*/run/{RECIPE}")
    found = {path.parent for pattern in patterns for path in folder.glob(pattern)}
    if not found:
        raise FlowmapsrError(
            f"{folder} holds no training run (no {RECIPE}); give the folder that was the "
            f"'output' of flowmapsr train, or one that holds several of them"
        )
    return tuple(sorted(found))


def run_status(folder: Path) -> RunStatus:
    """The stages of a run, given its folder.

    Raises:
        FlowmapsrError: one of its records cannot be read.
    """
    remedy = "the command that made this run writes it again, once it is removed"
    recipe = read_record(folder / RECIPE, TrainingRecipe, remedy=remedy)
    assert recipe is not None
    holder = living_owner(str(folder), TRAINING)
    stages: list[StageStatus] = []
    for one in recipe.stages:
        owner = holder if all(before.state == "done" for before in stages) else None
        stages.append(_stage_status(recipe, StagePaths(folder, one.name), owner))
    return RunStatus(run=str(folder), stages=tuple(stages))


def _stage_status(
    recipe: TrainingRecipe, folder: StagePaths, owner: LockOwner | None
) -> StageStatus:
    """
    Args:
        owner: the process that trains this stage, or is about to.
    """
    stage, done = recipe.stage(folder.name), folder.finished_record()
    known: dict[str, Any] = {
        "stage": stage.name,
        "restarts": count_restarts(folder),
        "validation": last_validation(recipe, folder),
    }
    if done is not None:
        speeds = read_metrics(folder.root, prefix=SPEED).get(SPEED)
        speed = statistics.fmean(speeds.values) if speeds else None
        steps = {"step": done.steps, "steps": done.steps}
        return StageStatus(**known, **steps, state="done", images_per_second=speed)
    remedy = "the training writes it again when its command is run, or remove it"
    progress = read_record(folder.progress, StageProgress, remedy=remedy)
    ended = read_end(folder)
    running = owner is not None and (ended is None or ended.time < owner.started)
    if progress is None:
        state: State = "running" if running else "waiting"
        return StageStatus(**known, state=state, step=0, steps=stage.steps)
    is_recent = owner is not None and progress.updated > owner.started
    known_speed = running and is_recent
    age = time.time() - progress.checkpoint_time
    return StageStatus(
        **known,
        state="running" if running else "stopped",
        step=progress.step,
        steps=progress.steps,
        images_per_second=(progress.images_per_second or None) if known_speed else None,
        seconds_left=progress.seconds_left(stage.images_per_step) if known_speed else None,
        headline=progress.headline,
        headline_value=progress.headline_value,
        checkpoint_step=progress.checkpoint_step or None,
        checkpoint_age_seconds=age if progress.checkpoint_step else None,
        ended=None if running else end_reason(folder),
        problem=progress.problem or None,
    )

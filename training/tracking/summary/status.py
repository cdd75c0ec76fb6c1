"""Reads the progress of a training run from its folder, and lays several runs side by side; needs
no server."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from datagen.errors import FlowmapsrError
from datagen.io.lock import STALE_AFTER, TRAINING, living_owner
from datagen.io.lock_owner import LockOwner
from datagen.records import FrozenModel, flatten, read_record
from training.run_dir.further import on_old_weights
from training.run_dir.paths import RECIPE, StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import FINISHED, end_reason, read_progress, read_starts
from training.settings.held_out import is_headline
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.tracking.journal import last_values, read_metrics
from training.tracking.store.run_names import original_of
from training.tracking.summary.stage_table import EVALUATION

SPEED = "perf/images_per_second"
PLACES = {"output", "checkpoints"}
"""Settings that are always another one in another run."""

State = Literal["done", "running", "stopped", "waiting"]


class StageStatus(FrozenModel):
    """Progress of one stage; what is not known is null."""

    stage: str
    state: State
    step: int
    steps: int
    images_per_second: float | None = None
    """Recent speed; of a stage that is not running, the average."""
    seconds_left: float | None = None
    headline: str | None = None
    """The term that the stage is watched by, named as in MLflow."""
    headline_value: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    restarts: int = 0
    worker_hours: float | None = None
    """Of all workers together, over all starts."""
    on_gpus: bool | None = None
    ended: str | None = None
    """Why it stopped, or is done at that step, where that is known."""
    on_old_weights: str | None = None
    """The earlier stage and the step whose weights it grew from, where that stage has others."""
    stands_still: str | None = None
    """That it runs without a step for long, in words."""
    problem: str | None = None
    """Why the last checkpoint could not be written."""
    validation: dict[str, float] = {}
    """The last values of `val/...`."""

    @property
    def held_out(self) -> dict[str, float]:
        """The few of these that a person is shown."""
        return {name: value for name, value in self.validation.items() if is_headline(name)}


class RunStatus(FrozenModel):
    run: str
    stages: tuple[StageStatus, ...]
    evaluation: dict[str, float] = {}
    """The last evaluation of the finished model on photos, `eval/...`."""

    @property
    def done(self) -> bool:
        return all(stage.state == "done" for stage in self.stages)

    @property
    def current(self) -> StageStatus:
        """The first stage that is not done, else the last."""
        unfinished = [stage for stage in self.stages if stage.state != "done"]
        return unfinished[0] if unfinished else self.stages[-1]

    @property
    def step(self) -> int:
        """Steps of all stages so far."""
        return sum(stage.step for stage in self.stages)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def worker_hours(self) -> float | None:
        """Of all stages, where that is known of one."""
        known = [stage.worker_hours for stage in self.stages if stage.worker_hours is not None]
        return sum(known) if known else None

    @property
    def validation(self) -> dict[str, float]:
        """The last values of `val/...`, of the last stage that has some."""
        return next((one.validation for one in reversed(self.stages) if one.validation), {})

    @property
    def held_out(self) -> dict[str, float]:
        """The few of these that a person is shown."""
        return next((one.held_out for one in reversed(self.stages) if one.held_out), {})


class LeftOut(FrozenModel):
    """A run that cannot be read."""

    run: str
    reason: str


class RunComparison(FrozenModel):
    """Several runs side by side."""

    runs: tuple[RunStatus, ...]
    settings: dict[str, dict[str, str]]
    """The settings that differ: by name, the value of each run's folder that has one."""
    left_out: tuple[LeftOut, ...] = ()


class NoRun(FlowmapsrError):
    """A folder holds no training run."""


def find_runs(folders: Sequence[str]) -> tuple[Path, ...]:
    """The runs with these folders, each once; of a folder that holds several (e.g. of a demo), all.

    Raises:
        NoRun: there is none in one of them.
    """
    found = (
        run for folder in folders for run in _runs_in(Path(os.path.expanduser(folder)).absolute())
    )
    return tuple(dict.fromkeys(found))


def _runs_in(folder: Path) -> list[Path]:
    if (folder / RECIPE).is_file():
        return [folder]
    patterns = (f"*/{RECIPE}", f"*/run/{RECIPE}")
    found = {path.parent for pattern in patterns for path in folder.glob(pattern)}
    if not found:
        raise NoRun(
            f"{folder} holds no training run (no {RECIPE}); give the folder that was the "
            f"'output' of flowmapsr train, or one that holds several of them"
        )
    return sorted(found)


def compare_runs(folders: Sequence[Path]) -> RunComparison:
    """Runs side by side, without those that cannot be read.

    Raises:
        FlowmapsrError: none of them can be read.
    """
    runs: list[RunStatus] = []
    recipes: dict[str, TrainingRecipe] = {}
    left_out: list[LeftOut] = []
    for folder in folders:
        try:
            runs.append(run_status(folder))
            recipes[str(folder)] = _recipe(folder)
        except FlowmapsrError as error:
            left_out.append(LeftOut(run=str(folder), reason=str(error)))
    if not runs:
        raise FlowmapsrError("\n".join(one.reason for one in left_out))
    settings = differing_settings(recipes)
    return RunComparison(runs=tuple(runs), settings=settings, left_out=tuple(left_out))


def differing_settings(recipes: Mapping[str, TrainingRecipe]) -> dict[str, dict[str, str]]:
    """The settings that are not the same in all recipes, by dotted name; stages that some recipes
    do not have are only named."""
    names = {run: [stage.name for stage in recipe.stages] for run, recipe in recipes.items()}
    shared = set.intersection(*map(set, names.values()))
    values: dict[str, dict[str, str]] = {}
    for run, recipe in recipes.items():
        tree = recipe.model_dump(mode="json", exclude={*PLACES, "stages"})
        dumped = {stage.name: stage.model_dump(mode="json") for stage in recipe.stages}
        tree["stages"] = {name: stage for name, stage in dumped.items() if name in shared}
        for name, value in {"stages": ", ".join(names[run]), **flatten(tree)}.items():
            values.setdefault(name, {})[run] = value
    return {
        name: found
        for name, found in values.items()
        if len(found) < len(recipes) or len(set(found.values())) > 1
    }


def _recipe(folder: Path) -> TrainingRecipe:
    remedy = "the command that made this run writes it again, once it is removed"
    recipe = read_record(folder / RECIPE, TrainingRecipe, remedy=remedy)
    if recipe is None:
        raise FlowmapsrError(f"{folder / RECIPE} is gone; was the run removed just now?")
    return recipe


def run_status(folder: Path, recipe: TrainingRecipe | None = None) -> RunStatus:
    """The stages of a run, given its folder.

    Args:
        recipe: the run's, where it is at hand; that of a system outside this package is not read.

    Raises:
        FlowmapsrError: one of its records cannot be read.
    """
    recipe = recipe or _recipe(folder)
    holder = living_owner(str(folder), TRAINING)
    if holder and time.time() - holder.heartbeat > STALE_AFTER and original_of(folder):
        holder = None  # of the training that this is a copy of
    recipe = recipe.model_copy(update={"output": str(folder)})  # it may have been moved
    old = {later.stage: str(later.grew_from) for later in on_old_weights(recipe)}
    stages: list[StageStatus] = []
    for one in recipe.stages:
        owner = holder if all(before.state == "done" for before in stages) else None
        found = _stage_status(recipe, StagePaths(folder, one.name), owner)
        stages.append(found.model_copy(update={"on_old_weights": old.get(one.name)}))
    evaluation = last_values(folder, prefix=EVALUATION)
    return RunStatus(run=str(folder), stages=tuple(stages), evaluation=evaluation)


def _stage_status(
    recipe: TrainingRecipe, folder: StagePaths, owner: LockOwner | None
) -> StageStatus:
    """
    Args:
        owner: the process that trains this stage, or is about to.
    """
    stage, done, starts = recipe.stage(folder.name), folder.finished_record(), read_starts(folder)
    known: dict[str, Any] = {
        "stage": stage.name,
        "restarts": sum(start.is_restart for start in starts),
        "on_gpus": starts[-1].workers.on_gpus if starts else None,
        "validation": last_values(folder.root, prefix="val/"),
    }
    if done is not None:
        known |= {"ended": done.ended or None}
        steps = {"step": done.steps, "steps": done.steps}
        last = read_progress(folder)
        if last is not None:
            known |= _reported(last)
        return StageStatus(**known, **steps, state="done", images_per_second=_mean_speed(folder))
    remedy = "the training writes it again when its command is run, or remove it"
    progress = read_record(folder.progress, StageProgress, remedy=remedy)
    running = owner is not None
    if progress is None:
        state: State = "running" if running else "waiting"
        return StageStatus(**known, state=state, step=0, steps=stage.steps)
    is_recent = owner is not None and progress.updated > owner.started
    known_speed = running and is_recent
    recent_speed = (progress.images_per_second or None) if known_speed else None
    speed = recent_speed if running else _mean_speed(folder)
    age = time.time() - progress.checkpoint_time
    return StageStatus(
        **known,
        **_reported(progress),
        state="running" if running else "stopped",
        step=progress.step,
        steps=stage.steps,
        images_per_second=speed,
        seconds_left=progress.seconds_left(stage.images_per_step) if known_speed else None,
        checkpoint_step=progress.checkpoint_step or None,
        checkpoint_age_seconds=age if progress.checkpoint_step else None,
        stands_still=_stands_still(progress, recipe) if known_speed else None,
        ended=None if running else _why_stopped(stage, progress, folder),
        problem=progress.problem or None,
    )


def _stands_still(progress: StageProgress, recipe: TrainingRecipe) -> str | None:
    still = progress.stands_still(time.time() - progress.updated)
    limit = f"watchdog_seconds={recipe.watchdog_seconds:g}"
    return f"{still}; a worker without progress is killed after {limit}" if still else None


def _why_stopped(stage: StageSettings, progress: StageProgress, folder: StagePaths) -> str:
    reason = end_reason(folder)
    if reason == FINISHED and progress.step < stage.steps:
        return f"it was done with {progress.step} steps, and has been given more since"
    return reason


def _reported(progress: StageProgress) -> dict[str, Any]:
    return progress.model_dump(include={"headline", "headline_value", "worker_hours"})


def _mean_speed(folder: StagePaths) -> float | None:
    speeds = read_metrics(folder.root, prefix=SPEED).get(SPEED)
    return statistics.fmean(speeds.values) if speeds else None

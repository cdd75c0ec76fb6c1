"""Reads from disk how far a training run has come; asks no server, so none needs to be up.

Knows the run folder's records, not the processes that write them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from datagen.fields import Settings
from training.records import StageProgress, StageRecord
from training.settings import StageSettings, TrainingRecipe

SILENT_AFTER_SECONDS = 120.0
"""A stage that has written no progress for so long is not running any more."""

State = Literal["done", "running", "stopped", "waiting"]
Record = TypeVar("Record", bound=Settings)


class StageStatus(Settings):
    """Where one stage stands; what is not known is null."""

    stage: str
    state: State
    step: int
    steps: int
    images_per_second: float | None = None
    seconds_left: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None


class RunStatus(Settings):
    run: str
    stages: tuple[StageStatus, ...]

    @property
    def done(self) -> bool:
        return all(stage.state == "done" for stage in self.stages)


def run_status(run: str) -> RunStatus:
    """The stages of a run, given its folder or the folder of a demo that holds it as `run/`.

    Raises:
        FlowmapsrError: there is no run, or one of its records cannot be read.
    """
    folder = Path(run).expanduser().absolute()
    if not (folder / "recipe.json").is_file() and (folder / "run" / "recipe.json").is_file():
        folder = folder / "run"
    recipe = _read(folder / "recipe.json", TrainingRecipe)
    if recipe is None:
        raise FlowmapsrError(
            f"{folder} holds no training run (no recipe.json); give the folder that was the "
            f"'output' of flowmapsr train"
        )
    stages = tuple(_stage_status(folder, stage) for stage in recipe.stages)
    return RunStatus(run=str(folder), stages=stages)


def _stage_status(run: Path, stage: StageSettings) -> StageStatus:
    folder = run / "stages" / stage.name
    done = _read(folder / "done.json", StageRecord)
    if done is not None:
        return StageStatus(stage=stage.name, state="done", step=done.steps, steps=done.steps)
    progress = _read(folder / "progress.json", StageProgress)
    if progress is None:
        return StageStatus(stage=stage.name, state="waiting", step=0, steps=stage.steps)
    now = time.time()
    running = now - progress.updated < SILENT_AFTER_SECONDS
    speed = progress.images_per_second
    images_left = (progress.steps - progress.step) * stage.images_per_step
    return StageStatus(
        stage=stage.name,
        state="running" if running else "stopped",
        step=progress.step,
        steps=progress.steps,
        images_per_second=speed if running else None,
        seconds_left=images_left / speed if running and speed > 0 else None,
        checkpoint_step=progress.checkpoint_step or None,
        checkpoint_age_seconds=now - progress.checkpoint_time if progress.checkpoint_step else None,
    )


def _read(path: Path, record: type[Record]) -> Record | None:
    try:
        return record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise FlowmapsrError(
            f"{path} is no {record.__name__} of this version of flowmapsr (first fault: "
            f"{error.errors()[0]['loc']}); read it with the version that wrote it"
        ) from error

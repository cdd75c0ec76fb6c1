"""The parent MLflow run of a training's stages: the settings, how the stages compare and, when it
fails, why. All of it is read from the run folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datagen.dataset.manifest import open_dataset
from datagen.io.lock import LockLostError
from datagen.records import flatten
from training.run_dir.best_effort import best_effort
from training.run_dir.lock import run_lock
from training.run_dir.paths import RunPaths, finished_stages, stage_paths
from training.run_dir.stacks import stack_files
from training.run_dir.starts import end_reason, read_progress, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Artifact, Event, Params, Status, Tags, dataset_input
from training.tracking.provenance import code_tags, launch_tags
from training.tracking.stage_table import LOGGED_TABLES, stage_table, write_stage_table
from training.tracking.tracker import STALL_SECONDS, Tracker, close_orphaned_run, fully_sent

log = logging.getLogger(__name__)

DEAD_STAGES_SECONDS = 30.0
"""How long to wait for the unsent events of dead workers."""


@contextmanager
def parent_run(recipe: TrainingRecipe) -> Iterator[ParentRun]:
    """The parent MLflow run, open for the block."""
    tracker = Tracker(Path(recipe.output), experiment=recipe.mlflow_experiment)
    parent = ParentRun(recipe, tracker)
    parent.describe()
    status: Status = "KILLED"
    reason: str | None = None
    owned = True
    try:
        yield parent
        status = "FINISHED" if finished_stages(recipe) else "KILLED"
    except LockLostError:
        owned = False  # another process continues this run
        raise
    except Exception as error:
        status, reason = "FAILED", str(error)
        raise
    finally:
        if owned:
            parent.end_stages(status)
            parent.close(status, reason=reason)


def flush_pending(recipe: TrainingRecipe) -> None:
    """Sends what a finished run could not send to MLflow in time, and ends its MLflow runs.

    Raises:
        FlowmapsrError: another process holds the run folder.
    """
    homes = [Path(recipe.output), *(stage.root for stage in stage_paths(recipe))]
    if all(fully_sent(home) for home in homes):
        return
    with run_lock(recipe), parent_run(recipe):
        log.info("sending to MLflow what it has missed")


class ParentRun:
    """What is written to the parent run."""

    def __init__(self, recipe: TrainingRecipe, tracker: Tracker) -> None:
        self.recipe = recipe
        self.tracker = tracker
        self.run = RunPaths(Path(recipe.output))
        self.stages = stage_paths(recipe)

    def describe(self) -> None:
        """Logs settings, dataset, user and code."""
        recipe = self.recipe
        manifest, root = open_dataset(recipe.manifest)
        params = flatten(recipe.model_dump(mode="json", exclude={"stages"}))
        tags = {
            "dataset.digest": manifest.digest,
            "recipe.digest": recipe.digest(),
            "stages": ", ".join(stage.name for stage in recipe.stages),
        }
        self._write(
            Params(values=params),
            Tags(values={**tags, **code_tags(), **launch_tags()}),
            dataset_input(manifest, root),
            Artifact(path=str(self.run.recipe)),
        )

    def compare_stages(self) -> None:
        """Logs the current table of the stages, and what they have cost."""
        with best_effort("the table of stages"):
            self._write(*comparison(self.recipe))
        starts = [start for stage in self.stages for start in read_starts(stage)]
        if not starts:
            return
        progress = [found for stage in self.stages if (found := read_progress(stage))]
        restarts = sum(max(0, len(read_starts(stage)) - 1) for stage in self.stages)
        last = max(starts, key=lambda start: start.time)
        self._write(Tags(values={**last.workers.tags(), "restarts": str(restarts)}))
        # MLflow shows the value of the largest step as the latest.
        step = sum(record.step for record in progress)
        hours = sum(record.worker_hours for record in progress)
        self.tracker.metrics(step, {last.workers.hours_metric: hours, "restarts": float(restarts)})

    def explain(self) -> None:
        """Logs the restarts of the stages with their reasons, and the stacks of hung workers."""
        for stage in self.stages:
            for stacks in stack_files(stage.stacks):
                self._write(Artifact(path=str(stacks), folder=f"stacks/{stage.name}"))
            if stage.starts.is_file():
                self._write(Artifact(path=str(stage.starts), folder=f"starts/{stage.name}"))
        if self.run.failures.is_file():
            self._write(Artifact(path=str(self.run.failures)))

    def end_stages(self, status: Status) -> None:
        """Ends the runs of stages whose workers died before they could; no worker may be alive."""
        deadline = time.monotonic() + DEAD_STAGES_SECONDS
        for stage in self.stages:
            done = stage.finished_record() is not None
            close_orphaned_run(
                self.run.root,
                experiment=self.recipe.mlflow_experiment,
                stage=stage.name,
                status="FINISHED" if done else status,
                reason=None if done else end_reason(stage),
                wait=max(1.0, deadline - time.monotonic()),
            )

    def close(self, status: Status, *, reason: str | None = None, wait: float = 60.0) -> None:
        """Logs the final comparison and ends the run."""
        self.compare_stages()
        self.explain()
        self.tracker.close(status, reason=reason, wait=wait)

    def stalled(self, reason: str) -> None:
        """Closes the run before the watchdog ends this process."""
        self.close("FAILED", reason=reason, wait=STALL_SECONDS)

    def _write(self, *events: Event) -> None:
        for event in events:
            self.tracker.write(event)


def comparison(recipe: TrainingRecipe) -> list[Event]:
    """The table of stages as files, and as the note on top of the run's page."""
    files = [Artifact(path=str(path)) for path in write_stage_table(recipe)]
    note = stage_table(recipe).to_markdown()
    return [*files, Tags(values={**LOGGED_TABLES, "mlflow.note.content": note})]

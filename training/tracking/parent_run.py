"""The MLflow run above the runs of a training's stages: what was asked for, how the stages compare,
and, when it ends badly, why.

Everything it tells lies in the run's folder; knows no launcher.
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
from training.tracking.tracker import STALL_SECONDS, Tracker, end_for_the_dead, is_told

log = logging.getLogger(__name__)

DEAD_STAGES_SECONDS = 30.0
"""How long a server may take for what dead workers left unsent."""


@contextmanager
def parent_run(recipe: TrainingRecipe) -> Iterator[ParentRun]:
    """The MLflow run above the stages' runs, open for the block."""
    tracker = Tracker(Path(recipe.output), experiment=recipe.mlflow_experiment)
    parent = ParentRun(recipe, tracker)
    parent.describe()
    status: Status = "KILLED"
    reason: str | None = None
    ours = True
    try:
        yield parent
        status = "FINISHED" if finished_stages(recipe) else "KILLED"
    except LockLostError:
        ours = False  # the run goes on with whoever has the folder now
        raise
    except Exception as error:
        status, reason = "FAILED", str(error)
        raise
    finally:
        if ours:
            parent.end_stages(status)
            parent.close(status, reason=reason)


def tell_the_rest(recipe: TrainingRecipe) -> None:
    """Sends what a finished run could not tell MLflow in its time, and ends its runs there.

    Raises:
        FlowmapsrError: another process is at it.
    """
    homes = [Path(recipe.output), *(stage.root for stage in stage_paths(recipe))]
    if all(is_told(home) for home in homes):
        return
    with run_lock(recipe), parent_run(recipe):
        log.info("MLflow is told what it has missed")


class ParentRun:
    """What is written to the run above the stages' runs."""

    def __init__(self, recipe: TrainingRecipe, tracker: Tracker) -> None:
        self.recipe = recipe
        self.tracker = tracker
        self.run = RunPaths(Path(recipe.output))
        self.stages = stage_paths(recipe)

    def describe(self) -> None:
        """What was asked for, of which data, by whom and with which code."""
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
        """The table of the stages as it is now, and what they have cost."""
        with best_effort("the table of stages"):
            self._write(*comparison(self.recipe))
        starts = [start for stage in self.stages for start in read_starts(stage)]
        if not starts:
            return
        stands = [found for stage in self.stages if (found := read_progress(stage))]
        restarts = sum(max(0, len(read_starts(stage)) - 1) for stage in self.stages)
        last = max(starts, key=lambda start: start.time)
        self._write(Tags(values={**last.workers.tags(), "restarts": str(restarts)}))
        # MLflow takes the value at the largest step for the last one.
        step = sum(stand.step for stand in stands)
        hours = sum(stand.worker_hours for stand in stands)
        self.tracker.metrics(step, {last.workers.hours_metric: hours, "restarts": float(restarts)})

    def explain(self) -> None:
        """How often and why the stages had to start again, and where they hung."""
        for stage in self.stages:
            for stacks in stack_files(stage.stacks):
                self._write(Artifact(path=str(stacks), folder=f"stacks/{stage.name}"))
            if stage.starts.is_file():
                self._write(Artifact(path=str(stage.starts), folder=f"starts/{stage.name}"))
        if self.run.failures.is_file():
            self._write(Artifact(path=str(self.run.failures)))

    def end_stages(self, status: Status) -> None:
        """Ends the runs of stages whose workers died without doing so; none may be at work."""
        deadline = time.monotonic() + DEAD_STAGES_SECONDS
        for stage in self.stages:
            done = stage.finished_record() is not None
            end_for_the_dead(
                self.run.root,
                experiment=self.recipe.mlflow_experiment,
                stage=stage.name,
                status="FINISHED" if done else status,
                reason=None if done else end_reason(stage),
                wait=max(1.0, deadline - time.monotonic()),
            )

    def close(self, status: Status, *, reason: str | None = None, wait: float = 60.0) -> None:
        """Says how the run stands at its end, and why."""
        self.compare_stages()
        self.explain()
        self.tracker.close(status, reason=reason, wait=wait)

    def stalled(self, reason: str) -> None:
        """The end of a run whose process is ended by its watchdog."""
        self.close("FAILED", reason=reason, wait=STALL_SECONDS)

    def _write(self, *events: Event) -> None:
        for event in events:
            self.tracker.write(event)


def comparison(recipe: TrainingRecipe) -> list[Event]:
    """The stages in one table: as files, and as the note on top of the run's page."""
    files = [Artifact(path=str(path)) for path in write_stage_table(recipe)]
    note = stage_table(recipe).to_markdown()
    return [*files, Tags(values={**LOGGED_TABLES, "mlflow.note.content": note})]

"""The parent MLflow run of a training's stages: the settings, how the stages compare and, when it
fails, why. All of it is read from the run folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from datagen.dataset.manifest import dataset_root
from datagen.io.lock import LockLostError
from training.run_dir.best_effort import best_effort
from training.run_dir.datasets import recorded_datasets
from training.run_dir.further import stages_set_aside, tracked_folders
from training.run_dir.lock import run_lock
from training.run_dir.paths import RunPaths, finished_stages, stage_paths
from training.run_dir.stacks import stack_files
from training.run_dir.starts import end_reason
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Artifact, DatasetInput, Status, described, digest_tag
from training.tracking.journal import forget_sent
from training.tracking.provenance import code_tags, launch_tags
from training.tracking.review.page import refresh_review
from training.tracking.store.run_names import read_names
from training.tracking.summary.description import describe_run
from training.tracking.tracker import STALL_SECONDS, Tracker, close_orphaned_run, fully_sent

log = logging.getLogger(__name__)

DEAD_STAGES_SECONDS, MODELS_SECONDS = 30.0, 600.0
"""How long to wait for the unsent events of dead workers, and for the last models of a training."""


@contextmanager
def parent_run(recipe: TrainingRecipe) -> Iterator[ParentRun]:
    """The parent MLflow run, open for the block."""
    parent = ParentRun(recipe)
    status: Status | None = "KILLED"
    reason = None
    try:
        yield parent
        if finished_stages(recipe):
            status = "FINISHED"
    except LockLostError:
        status = None  # another process continues this run
        raise
    except Exception as error:
        status, reason = "FAILED", str(error)
        raise
    finally:
        if status is not None:
            parent.end_stages(status)
            if parent.close(status, reason=reason):
                refresh_review(parent.run.root)


def flush_pending(recipe: TrainingRecipe) -> None:
    """Sends what a finished run could not send to MLflow in time, and ends its MLflow runs.

    Raises:
        FlowmapsrError: another process holds the run folder.
    """
    is_known = read_names(Path(recipe.output)) is not None
    if is_known and all(fully_sent(home) for home in tracked_folders(recipe)):
        return
    with run_lock(recipe), parent_run(recipe):
        log.info("sending to MLflow what it has missed")


class ParentRun:
    """What is written to the parent run; at first settings, dataset, user and code."""

    def __init__(self, recipe: TrainingRecipe) -> None:
        self.recipe = recipe
        self.run = RunPaths(Path(recipe.output))
        self.stages = stage_paths(recipe)
        if read_names(self.run.root) is None:
            forget_sent(self.run.root)
        self.tracker = Tracker(self.run.root, experiment=recipe.mlflow_experiment)
        settings = recipe.model_dump(mode="json", exclude={"stages"})
        settings |= {stage.name: stage.content() for stage in recipe.stages}
        names = ", ".join(stage.name for stage in recipe.stages)
        tags = {"recipe.digest": recipe.digest(), "stages": names, **code_tags(), **launch_tags()}
        datasets = recorded_datasets(recipe)
        if len(datasets.states) > 1:
            stages = datasets.stages.items()
            samples = (f"{name} {state.samples} ({state.digest[:12]})" for name, state in stages)
            tags["dataset.samples_of_stages"] = ", ".join(samples)
        roots = list(map(dataset_root, recipe.places))
        inputs = [
            DatasetInput(
                name=PurePosixPath(root).name, digest=one.digest, source=root, samples=one.samples
            )
            for state in datasets.states
            for root, one in zip(roots, state.parts, strict=True)
        ]
        tags["dataset.digest"] = digest_tag(inputs[-len(roots) :])
        self.tracker.write(*described(settings, inputs, tags))
        self.tracker.write(Artifact(path=str(self.run.recipe)))

    def end_stages(self, status: Status) -> None:
        """Ends the runs of stages whose workers died before they could; no worker may be alive."""
        seconds = MODELS_SECONDS if status == "FINISHED" else DEAD_STAGES_SECONDS
        if self.tracker.is_away:
            seconds = STALL_SECONDS
        deadline = time.monotonic() + seconds
        for stage in self.stages:
            done = stage.finished_record() is not None
            close_orphaned_run(
                stage,
                experiment=self.recipe.mlflow_experiment,
                label=self.recipe.numbered(stage.name),
                status="FINISHED" if done else status,
                reason=None if done else end_reason(stage),
                wait=max(1.0, deadline - time.monotonic()),
            )
        for kept in stages_set_aside(self.recipe):
            close_orphaned_run(
                kept,
                experiment=self.recipe.mlflow_experiment,
                status="KILLED",
                reason=None,
                wait=max(1.0, deadline - time.monotonic()),
            )

    def close(self, status: Status, *, reason: str | None = None, wait: float = 60.0) -> bool:
        """Ends the run with its final page, the starts of the stages, and the stacks of hung
        workers. Returns whether MLflow has all of it."""
        with best_effort("the page of the run"):
            self.tracker.write(*describe_run(self.recipe, ended=True))
        for stage in self.stages:
            files = {path: f"stacks/{stage.name}" for path in stack_files(stage.stacks)}
            files[stage.starts] = f"starts/{stage.name}"
            for path, folder in files.items():
                if path.is_file():
                    self.tracker.write(Artifact(path=str(path), folder=folder))
        if self.run.failures.is_file():
            self.tracker.write(Artifact(path=str(self.run.failures)))
        return self.tracker.close(status, reason=reason, wait=wait)

    def stalled(self, reason: str) -> None:
        """Closes the run before the watchdog ends this process."""
        self.close("FAILED", reason=reason, wait=STALL_SECONDS)

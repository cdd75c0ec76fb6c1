"""Places the stages of a run on Ray: every worker of one Ray Train group trains them in order.

Knows Ray; what a stage does is `training`'s business. Ray restarts the group when a worker dies,
and training goes on from its own last checkpoint.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from pipelines.cluster import ray_cluster
from pipelines.progress import Progress, show_progress
from training.records import StageProgress, StageRecord
from training.run_folder import STOP_FILE, StageFolder, StopSignal
from training.settings import TrainingRecipe
from training.tracking import tracking_uri

FAILURE_FILE = "failure.txt"
POLL_SECONDS = 1.0
SAVE_SECONDS = 120.0
"""How long workers may take to save when the launch is interrupted."""


@contextmanager
def training_workers(recipe: TrainingRecipe) -> Iterator[TrainingWorkers]:
    """The workers of a run, at work for the block; none are started when all stages are done.

    However the block is left before they are done, they save a checkpoint first.
    """
    workers = TrainingWorkers(recipe)
    if all(folder.record() is not None for folder in workers.folders.values()):
        yield workers
        return
    with ray_cluster(cpus=recipe.workers):
        workers.start()
        try:
            yield workers
        finally:
            workers.stop()


class TrainingWorkers:
    """A Ray Train group in a thread of its own, so that this one can show progress and hear
    interrupts."""

    def __init__(self, recipe: TrainingRecipe) -> None:
        self.recipe = recipe
        self.run = Path(recipe.output)
        self.folders = {stage.name: StageFolder(self.run, stage.name) for stage in recipe.stages}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)

    def start(self) -> None:
        """Starts the group; it trains every stage that is not finished."""
        for leftover in (self.run / STOP_FILE, self.run / FAILURE_FILE):
            leftover.unlink(missing_ok=True)
        self._thread.start()

    def finished(self, name: str) -> StageRecord:
        """Waits for a stage, showing how far it is.

        Raises:
            FlowmapsrError: the stage cannot go on; its last checkpoint is kept.
        """
        folder = self.folders[name]
        record = folder.record()
        if record is not None:
            return record
        with show_progress(name, total=self.recipe.stage(name).steps, unit="steps") as progress:
            while record is None and self._thread.is_alive():
                self._thread.join(POLL_SECONDS)
                _show(progress, folder)
                record = folder.record()
        if record is None:
            raise FlowmapsrError(self._reason(folder))
        return record

    def stop(self) -> None:
        """Waits for the group to end; one that still trains is asked for a checkpoint first."""
        unfinished = any(folder.record() is None for folder in self.folders.values())
        if unfinished and self._thread.is_alive():
            (self.run / STOP_FILE).touch()
        self._thread.join(SAVE_SECONDS)
        (self.run / STOP_FILE).unlink(missing_ok=True)

    def _fit(self) -> None:
        try:
            _trainer(self.recipe).fit()
        except Exception as error:  # kept for the waiting thread, which raises it
            self._error = error

    def _reason(self, folder: StageFolder) -> str:
        failure = self.run / FAILURE_FILE
        if failure.exists():
            return failure.read_text()
        if self._error is not None:
            return (
                f"stage {folder.name!r}: the workers failed {self.recipe.max_failures + 1} times; "
                f"its last checkpoint is kept in {folder.home}. Last error: {self._error}"
            )
        return (
            f"stage {folder.name!r} was stopped before its last step; run the same command to go "
            "on from its checkpoint"
        )


def _trainer(recipe: TrainingRecipe) -> Any:
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    use_gpu = torch.cuda.is_available()
    return TorchTrainer(
        _work,
        train_loop_config={"recipe": recipe.model_dump_json(), "tracking_uri": tracking_uri()},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=recipe.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="training",
            storage_path=str(Path(recipe.output) / "ray"),
            failure_config=FailureConfig(max_failures=recipe.max_failures),
        ),
    )


def _work(config: dict[str, str]) -> None:
    """Runs on every worker. An error meant for the user ends the run instead of being retried.

    It is written to a file and raised, so that Ray takes the other workers down too, which wait for
    this one; the restarted group sees the file and leaves the telling to the driver.
    """
    from training.run import run_stages  # heavy, and only needed here

    os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
    recipe = TrainingRecipe.model_validate_json(config["recipe"])
    run = Path(recipe.output)
    failure = run / FAILURE_FILE
    if failure.exists():
        return
    try:
        run_stages(recipe, stop_requested=StopSignal(run))
    except FlowmapsrError as error:
        failure.write_text(str(error))
        raise


def _show(progress: Progress, folder: StageFolder) -> None:
    try:
        stands = StageProgress.model_validate_json((folder.home / "progress.json").read_bytes())
    except (OSError, ValidationError):
        return  # the workers have not written it yet
    progress.reach(
        stands.step, note=f"loss {stands.loss:.4f}, {stands.images_per_second:.1f} images/s"
    )

"""Places one training stage on Ray: `run_stage` on every worker of a Ray Train group.

Knows Ray; what a stage does is `training`'s business. Ray restarts the group when a worker dies,
and the stage goes on from its own last checkpoint.
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


def train_stage(recipe: TrainingRecipe, name: str) -> StageRecord:
    """Trains a stage on `recipe.workers` Ray workers, or returns at once when it is finished.

    Raises:
        FlowmapsrError: the stage cannot go on; its last checkpoint is kept.
        KeyboardInterrupt: passed on after the workers saved a checkpoint.
    """
    folder = StageFolder(Path(recipe.output), name)
    record = folder.record()
    if record is not None:
        return record
    for leftover in (folder.run / STOP_FILE, folder.home / FAILURE_FILE):
        leftover.unlink(missing_ok=True)
    folder.home.mkdir(parents=True, exist_ok=True)
    with ray_cluster(cpus=recipe.workers):
        _run_group(recipe, folder)
    failure = folder.home / FAILURE_FILE
    if failure.exists():
        raise FlowmapsrError(failure.read_text())
    record = folder.record()
    if record is None:
        raise FlowmapsrError(
            f"stage {name!r} was stopped before its last step; run the same command to go on from "
            "its checkpoint"
        )
    return record


def _run_group(recipe: TrainingRecipe, folder: StageFolder) -> None:
    """Ray Train in a thread of its own, so that this one can show progress and hear interrupts."""
    errors: list[Exception] = []

    def fit() -> None:
        try:
            _trainer(recipe, folder).fit()
        except Exception as error:  # handed to the waiting thread, which raises it
            errors.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    settings = recipe.stage(folder.name)
    with show_progress(folder.name, total=settings.steps, unit="steps") as progress:
        thread.start()
        with _saved_when_interrupted(folder.run, thread):
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                _show(progress, folder)
    if errors:
        raise FlowmapsrError(
            f"stage {folder.name!r} failed {recipe.max_failures + 1} times in a row; its last "
            f"checkpoint is kept in {folder.home}. Last error: {errors[0]}"
        ) from errors[0]


def _trainer(recipe: TrainingRecipe, folder: StageFolder) -> Any:
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    use_gpu = torch.cuda.is_available()
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe.model_dump_json(),
            "stage": folder.name,
            "tracking_uri": tracking_uri(),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=recipe.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.run / "ray"),
            failure_config=FailureConfig(max_failures=recipe.max_failures),
        ),
    )


def _work(config: dict[str, str]) -> None:
    """Runs on every worker. An error meant for the user ends the stage instead of being retried.

    It is written to a file and raised, so that Ray takes the other workers down too, which wait for
    this one; the restarted group sees the file and leaves the telling to the driver.
    """
    from training.stages import run_stage  # heavy, and only needed here

    os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
    recipe = TrainingRecipe.model_validate_json(config["recipe"])
    folder = StageFolder(Path(recipe.output), config["stage"])
    failure = folder.home / FAILURE_FILE
    if failure.exists():
        return
    try:
        run_stage(recipe, folder.name, stop_requested=StopSignal(folder.run))
    except FlowmapsrError as error:
        failure.write_text(str(error))
        raise


@contextmanager
def _saved_when_interrupted(run: Path, thread: threading.Thread) -> Iterator[None]:
    """On an interrupt asks the workers for a checkpoint and waits until they have written it."""
    try:
        yield
    except KeyboardInterrupt:
        (run / STOP_FILE).touch()
        thread.join(SAVE_SECONDS)
        (run / STOP_FILE).unlink(missing_ok=True)
        raise


def _show(progress: Progress, folder: StageFolder) -> None:
    try:
        stands = StageProgress.model_validate_json((folder.home / "progress.json").read_bytes())
    except (OSError, ValidationError):
        return  # the workers have not written it yet
    progress.reach(
        stands.step, note=f"loss {stands.loss:.4f}, {stands.images_per_second:.1f} images/s"
    )

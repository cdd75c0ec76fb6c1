"""Runs the stages of a training on Ray: every worker of one Ray Train group trains them in order.

Ray restarts the group when a worker dies, and training continues from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr

from datagen.errors import FlowmapsrError
from datagen.io.lock import LockLostError
from datagen.records import FrozenModel
from pipelines.cluster.prometheus import stage_exported
from pipelines.cluster.ray_session import cluster_nodes, ray_cluster
from pipelines.cluster.stage_watch import RunWatch, StageWatch
from pipelines.cluster.workers import Placement, place_workers
from pipelines.terminal.doing import doing
from pipelines.terminal.progress import show_progress
from training.monitoring.json_log import FORMAT, at_work_on, json_wanted
from training.monitoring.startup_timer import process_started, startup
from training.monitoring.watchdog import connection_timeout
from training.run_dir.lock import RunLock
from training.run_dir.paths import RunPaths, StagePaths, finished_stages, stage_paths
from training.run_dir.records import StageRecord
from training.run_dir.starts import end_reason, last_line, read_starts
from training.run_dir.stop_signal import StopSignal
from training.settings.recipe import TrainingRecipe
from training.tracking.provenance import LAUNCHED, launched
from training.tracking.store.address import store_variables

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SAVE_SECONDS = 120.0
"""How long workers may take to save when the launch is interrupted."""
LOADING_SECONDS = 3.0
"""The same for workers that have not begun yet and have nothing to save."""


@contextmanager
def training_workers(recipe: TrainingRecipe, lock: RunLock) -> Iterator[TrainingWorkers]:
    """The workers of a run for the length of the block; none if all stages are finished.

    If the block ends before they have finished, they save a checkpoint first, unless another
    training has taken the run folder.

    Raises:
        FlowmapsrError: they do not fit on the cluster.
    """
    workers = TrainingWorkers(recipe, lock)
    if finished_stages(recipe) is not None:
        yield workers
        return
    with ray_cluster(cpus=recipe.most_workers * recipe.cpus_per_worker):
        workers.start(place_workers(recipe, cluster_nodes()))
        try:
            yield workers
        finally:
            workers.stop()


class TrainingWorkers:
    """A Ray Train group in its own thread, so that this one can show progress and stop it."""

    def __init__(self, recipe: TrainingRecipe, lock: RunLock) -> None:
        self.recipe = recipe
        self.lock = lock
        self.run = Path(recipe.output)
        self._stop = StopSignal(self.run)
        self._watch = RunWatch(self.run, most_failures=recipe.max_failures)
        self._error: Exception | None = None
        # Not the thread itself is waited for: until Python 3.13 a join that a signal interrupts
        # makes a thread seem ended.
        self._ended = threading.Event()
        self._placement: Placement | None = None
        self._starts = _count_starts(recipe)

    def start(self, placement: Placement) -> None:
        """Starts the group; it trains every stage that is not finished."""
        self._stop.clear()
        self._placement = placement
        threading.Thread(target=self._fit, args=(placement,), name="ray-train", daemon=True).start()

    def finished(self, name: str) -> StageRecord:
        """Waits for a stage, showing its progress.

        Raises:
            FlowmapsrError: the stage cannot continue; its last checkpoint is kept.
            LockLostError: another training has taken the run folder.
        """
        folder = StagePaths(self.run, name)
        at_work_on(stage=name)
        if folder.finished_record() is None:
            steps = self.recipe.stage(name).steps
            with (
                show_progress(name, total=steps, unit="steps") as progress,
                stage_exported(self.recipe, folder) as export,
            ):
                watch = StageWatch(progress, folder, self._waiting)
                while folder.finished_record() is None and not self._ended.wait(POLL_SECONDS):
                    self.lock.raise_if_lost()
                    if self._watch.show_failure(folder):
                        watch.start_over()
                    export(watch.update())
                    self._watch.show_log()
            self._watch.show_log()
        record = folder.finished_record()
        if record is None:
            raise self._failure(folder)
        return record

    def stop(self) -> None:
        """Waits for the group to end; if it still trains, it saves a checkpoint first.

        Workers that have not begun are not waited for until they have loaded their libraries.
        """
        try:
            self.lock.raise_if_lost()
        except LockLostError:
            ray.shutdown()  # ends the workers too: they must not write any more
            return
        begun = _count_starts(self.recipe) > self._starts
        if finished_stages(self.recipe) is None and not self._ended.is_set():
            doing("waiting for the workers to save a checkpoint" if begun else "ending the workers")
            self._stop.ask()
        if not self._ended.wait(SAVE_SECONDS if begun else LOADING_SECONDS) and begun:
            log.warning(
                "the workers did not save within %.0f s and are stopped: the steps since the last "
                "checkpoint will be repeated",
                SAVE_SECONDS,
            )
        self._watch.show_log()
        self._stop.clear()

    def _waiting(self) -> str:
        assert self._placement is not None
        return self._placement.waiting(ray.available_resources(), cluster_nodes())

    def _fit(self, placement: Placement) -> None:
        try:
            _trainer(self.recipe, placement).fit()
        except Exception as error:  # kept for the waiting thread, which raises it
            # What `FailureLog` raised, if it ended the run.
            self._error = getattr(error, "controller_failure", error)
        finally:
            self._ended.set()

    def _failure(self, folder: StagePaths) -> FlowmapsrError:
        if isinstance(self._error, FlowmapsrError):
            return self._error
        if self._error is not None:
            if not self._watch.failed:
                return FlowmapsrError(
                    f"stage {folder.name!r}: Ray cannot train it: {last_line(self._error)}"
                )
            paths = RunPaths(self.run)
            return FlowmapsrError(
                f"stage {folder.name!r}: workers failed more often than max_failures="
                f"{self.recipe.max_failures} allows. The last time: {end_reason(folder)}. See "
                f"{paths.failures} and {paths.logs}. The same command goes on from the stage's "
                "last checkpoint, or from its start without one"
            )
        return FlowmapsrError(
            f"stage {folder.name!r} was stopped before its last step; run the same command to "
            "continue"
        )


class TrainJob(FrozenModel):
    """Everything that a worker of a run has to know."""

    recipe: TrainingRecipe
    mlflow: dict[str, SecretStr]
    """The variables that name the store; nodes of a cluster may lack them."""
    launched: str
    """Who started which command, as JSON."""
    log_format: str
    """Of the workers' logs: `text` or `json`."""
    began: float
    """When the command started, in seconds since the epoch."""
    requested: float
    """When it asked Ray for workers."""
    starts: int
    """Starts of all stages before that."""


def _trainer(recipe: TrainingRecipe, placement: Placement) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # Imports torch, which takes a while.
    from pipelines.cluster.train_hooks import FailureLog, NetworkConfig

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray's types know the older kind only.
    callbacks: Any = [FailureLog(Path(recipe.output), most=recipe.max_failures)]
    seconds = round(connection_timeout(recipe.watchdog_seconds).total_seconds())
    # Ray's own limit for a worker that does not answer: later than ours, which say more.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(seconds)
    elastic = placement.least < placement.most
    workers: Any = (placement.least, placement.most) if elastic else placement.least
    job = TrainJob(
        recipe=recipe,
        mlflow={name: SecretStr(value) for name, value in store_variables().items()},
        launched=launched(),
        log_format="json" if json_wanted() else "text",
        began=process_started(),
        requested=time.time(),
        starts=_count_starts(recipe),
    )
    return TorchTrainer(
        _train,
        train_loop_config=job.model_dump(),
        torch_config=NetworkConfig(
            backend="nccl" if placement.each.gpus else "gloo",
            timeout_s=seconds,
        ),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=placement.each.gpus > 0,
            resources_per_worker=placement.each.resources,
            placement_strategy=placement.strategy,
        ),
        run_config=RunConfig(
            name="training",
            storage_path=str(Path(recipe.output) / "ray"),
            failure_config=FailureConfig(max_failures=recipe.max_failures),
            callbacks=callbacks,
        ),
    )


def _train(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    job = TrainJob.model_validate(config)
    _time_start(job)
    # Heavy, and only needed here.
    from training.distributed import launched_as
    from training.monitoring.worker_log import keep_log
    from training.run import run_stages

    os.environ.update({name: value.get_secret_value() for name, value in job.mlflow.items()})
    os.environ |= {LAUNCHED: job.launched, FORMAT: job.log_format}
    keep_log(Path(job.recipe.output), launched_as()[0])
    try:
        run_stages(job.recipe, stop_requested=StopSignal(Path(job.recipe.output)))
    except FlowmapsrError as error:
        raise FlowmapsrError(str(error)) from error  # plain, so that Ray can pass it on


def _time_start(job: TrainJob) -> None:
    """Times the start since the command, or in a group that Ray restarted since this process."""
    if _count_starts(job.recipe) > job.starts:
        startup.restart(process_started())
    else:
        startup.restart(job.began)
        startup.mark("command", at=job.requested)
    startup.mark("workers")


def _count_starts(recipe: TrainingRecipe) -> int:
    return sum(len(read_starts(stage)) for stage in stage_paths(recipe))

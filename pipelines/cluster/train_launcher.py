"""Places the stages of a run on Ray: every worker of one Ray Train group trains them in order.

Knows Ray; what a stage does is `training`'s business. Ray restarts the group when a worker dies,
and training goes on from its own last checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from datagen.io.lock import PlaceLostError
from pipelines.cluster.fatal_error import LastWord
from pipelines.cluster.ray_session import cluster_nodes, end_connection, free_resources, ray_cluster
from pipelines.cluster.training_workers import Placement, place_workers
from pipelines.terminal.progress import Progress, show_progress
from training.monitoring.startup_timer import StartClock, process_began
from training.run_dir.lock import RunLock
from training.run_dir.paths import StageFolder, StopSignal, finished_stages
from training.run_dir.records import StageProgress, StageRecord
from training.run_dir.starts import FAILURES, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.mlflow_client import tracking_uri
from training.tracking.provenance import LAUNCHED, launched

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
FULL_BYTES = 1 << 20
"""A disk with less room than that is full."""
SAVE_SECONDS = 120.0
"""How long workers may take to save when the launch is interrupted."""


@contextmanager
def training_workers(recipe: TrainingRecipe, lock: RunLock) -> Iterator[TrainingWorkers]:
    """The workers of a run, at work for the block; none are started when all stages are done.

    However the block is left before they are done, they save a checkpoint first; but not when the
    run's folder is another training's by then.

    Raises:
        FlowmapsrError: the cluster can never hold them.
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
    """A Ray Train group in a thread of its own, so that this one can show progress and hear
    interrupts."""

    def __init__(self, recipe: TrainingRecipe, lock: RunLock) -> None:
        self.recipe = recipe
        self.lock = lock
        self.run = Path(recipe.output)
        self._last_word = LastWord(self.run)
        self._stop = StopSignal(self.run)
        self._error: Exception | None = None
        # Not the thread itself is waited for: until Python 3.13 a join that a signal interrupts
        # makes a thread seem ended.
        self._ended = threading.Event()
        self._placement: Placement | None = None

    def start(self, placement: Placement) -> None:
        """Starts the group; it trains every stage that is not finished.

        Raises:
            FlowmapsrError: the run's folder cannot be written.
        """
        self._stop.forget()
        self._last_word.begin()
        self._placement = placement
        threading.Thread(target=self._fit, args=(placement,), name="ray-train", daemon=True).start()

    def finished(self, name: str) -> StageRecord:
        """Waits for a stage, showing how far it is.

        Raises:
            FlowmapsrError: the stage cannot go on; its last checkpoint is kept.
            PlaceLostError: another training has taken the run's folder.
        """
        folder = StageFolder(self.run, name)
        record = folder.record()
        if record is not None:
            return record
        with show_progress(name, total=self.recipe.stage(name).steps, unit="steps") as progress:
            watch = StageWatch(progress, folder, self._waiting)
            while record is None and self._at_work(POLL_SECONDS):
                self.lock.check()
                watch.look()
                record = folder.record()
        record = folder.record()
        if record is None:
            raise FlowmapsrError(self._reason(folder))
        return record

    def stop(self) -> None:
        """Waits for the group to end; one that still trains is asked for a checkpoint first."""
        try:
            self.lock.check()
        except PlaceLostError:
            end_connection()  # and with it the workers: they must write nothing more
            return
        if finished_stages(self.recipe) is None and self._at_work(0):
            self._stop.ask()
        if self._at_work(SAVE_SECONDS):
            log.warning(
                "the workers have not saved within %.0f s and are ended: the steps since the last "
                "checkpoint are made again",
                SAVE_SECONDS,
            )
        self._stop.forget()
        self._last_word.end()

    def _at_work(self, wait: float) -> bool:
        """Whether the group still runs; returns at once when it ends within `wait` seconds."""
        return not self._ended.wait(wait)

    def _waiting(self) -> str:
        assert self._placement is not None
        return self._placement.waiting(free_resources(), cluster_nodes())

    def _fit(self, placement: Placement) -> None:
        try:
            _trainer(self.recipe, placement).fit()
        except Exception as error:  # kept for the waiting thread, which raises it
            self._error = error
        finally:
            self._ended.set()

    def _reason(self, folder: StageFolder) -> str:
        told = self._last_word.told()
        if told:
            return told
        if self._error is not None:
            return (
                f"stage {folder.name!r}: Ray gave up (max_failures={self.recipe.max_failures}). "
                f"Its last checkpoint is kept, and what failed is in {self.run / FAILURES}. Last "
                f"error: {self._error}"
            )
        return (
            f"stage {folder.name!r} was stopped before its last step; run the same command to go "
            "on from its checkpoint"
        )


class StageWatch:
    """Shows what the workers write about a stage, or why they do not yet."""

    def __init__(self, progress: Progress, folder: StageFolder, waiting: Callable[[], str]) -> None:
        """
        Args:
            waiting: says why nothing has been written yet.
        """
        self._progress = progress
        self._waiting = waiting
        self._folder = folder
        self._starts = len(read_starts(folder.home))
        self._path = folder.home / "progress.json"
        self._stale = self._read()
        self._warned = ""

    def look(self) -> None:
        """Brings the display up to date."""
        self._tell_starts()
        stands = self._read()
        self._warn(stands)
        if stands is None or stands == self._stale:
            self._progress.advance(0, note=self._waiting())
            return
        self._progress.reach(
            stands.step, note=f"loss {stands.loss:.4f}, {stands.images_per_second:.1f} images/s"
        )

    def _tell_starts(self) -> None:
        """Says when the stage goes on from a checkpoint, and what was wrong before."""
        starts = read_starts(self._folder.home)
        for start in starts[self._starts :]:
            for trouble in filter(None, (start.ended_before, start.passed_over)):
                log.warning(
                    "stage %r goes on from step %d: %s", self._folder.name, start.step, trouble
                )
        self._starts = len(starts)

    def _warn(self, stands: StageProgress | None) -> None:
        """Says what keeps training from saving, which goes on meanwhile: once, until it changes."""
        problem = "" if stands is None or stands == self._stale else stands.problem
        if not problem and self._is_full():
            problem = f"{self._path}: no space is left there"
        if problem and problem != self._warned:
            log.warning("%s; training goes on, but nothing more is saved until then", problem)
        self._warned = problem

    def _is_full(self) -> bool:
        folder = self._path.parent
        return folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES

    def _read(self) -> StageProgress | None:
        try:
            return StageProgress.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None  # the workers have not written it yet


def _trainer(recipe: TrainingRecipe, placement: Placement) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.cluster.torch_backend import NetworkConfig  # imports torch, which takes a while
    from pipelines.cluster.worker_failures import FailureLog

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    callbacks: Any = [FailureLog(Path(recipe.output))]  # Ray's types know the older kind only
    elastic = placement.least < placement.most
    workers: Any = (placement.least, placement.most) if elastic else placement.least
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe.model_dump_json(),
            "tracking_uri": tracking_uri(),
            "launched": launched(),
            "began": process_began(),
            "asked": time.time(),
        },
        torch_config=NetworkConfig(backend="nccl" if placement.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=placement.resources,
            placement_strategy=placement.strategy,
        ),
        run_config=RunConfig(
            name="training",
            storage_path=str(Path(recipe.output) / "ray"),
            failure_config=FailureConfig(max_failures=recipe.max_failures),
            callbacks=callbacks,
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """Runs on every worker. An error meant for the user ends the run instead of being retried.

    It is told and raised, so that Ray takes the other workers down too, which wait for this one;
    the restarted group knows of it and leaves the telling to the driver.
    """
    recipe = TrainingRecipe.model_validate_json(config["recipe"])
    clock = _clock(recipe, config)
    from training.run import run_stages  # heavy, and only needed here

    os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
    os.environ[LAUNCHED] = config["launched"]
    run = Path(recipe.output)
    last_word = LastWord(run)
    if last_word.told():
        return
    try:
        run_stages(recipe, stop_requested=StopSignal(run), clock=clock)
    except FlowmapsrError as error:
        last_word.tell(str(error))
        raise


def _clock(recipe: TrainingRecipe, config: dict[str, Any]) -> StartClock:
    """Since the command began; in a group that Ray restarted, since this process began."""
    homes = [StageFolder(Path(recipe.output), stage.name).home for stage in recipe.stages]
    if any(start.time > config["asked"] for home in homes for start in read_starts(home)):
        clock = StartClock.of_process()
    else:
        clock = StartClock(config["began"])
        clock.mark("command", at=config["asked"])
    clock.mark("workers")
    return clock

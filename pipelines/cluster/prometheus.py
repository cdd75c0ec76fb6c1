"""What Prometheus sees of a training and of a build: numbers that Ray exports on the node where the
command runs. All their names are here; Ray puts `ray_` before each.

Without the packages of `ray[default]` Ray takes the numbers and exports none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray.util.metrics import Gauge

from datagen.dataset.tasks import Plan, ShardTask
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import restarts
from training.settings.recipe import TrainingRecipe

TRAINING = {
    "flowmapsr_step": "Optimizer steps that are done",
    "flowmapsr_steps_planned": "Optimizer steps of the stage",
    "flowmapsr_loss": "Mean of the term that the stage is watched by, at the last report",
    "flowmapsr_images_per_second": "Speed of all workers together",
    "flowmapsr_data_wait_fraction": "Part of the time that the first worker waits for data",
    "flowmapsr_memory_bytes": "Peak GPU memory of the first worker; on CPUs what is resident",
    "flowmapsr_restarts": "Starts of the stage after one that did not finish it",
    "flowmapsr_last_step_seconds": "Unix time of the last step; before the first, of the command",
    "flowmapsr_checkpoint_seconds": "Unix time of the newest checkpoint; without, of the command",
    "flowmapsr_bad_step": "1 if the command ended by a loss that was not finite or diverged",
}
"""Gauges with the labels `run`, `stage` and `dataset`."""
BUILD = {
    "flowmapsr_dataset_samples_done": "Samples of the open build that are done or left out",
    "flowmapsr_dataset_samples_planned": "Samples of the open build",
    "flowmapsr_dataset_photos_done": "Photos of which at least one task is done",
    "flowmapsr_dataset_photos_planned": "Photos of the open build",
    "flowmapsr_dataset_tasks_done": "Tasks that are done",
    "flowmapsr_dataset_tasks_planned": "Tasks of the open build",
}
"""Gauges with the label `dataset`."""
SECONDS = 2.0
"""Between two exports; Ray takes the values of its processes every 10 s."""


class _Gauges:
    """A gauge for each metric, and the last values."""

    def __init__(self, metrics: Mapping[str, str], labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        keys = tuple(labels)
        self._gauges = {
            name: Gauge(name, description=description, tag_keys=keys)
            for name, description in metrics.items()
        }
        self.values: dict[str, float] = {}

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Hands the values to Ray again and again: it forgets those that were set long ago."""
        ended = threading.Event()
        thread = threading.Thread(target=self._repeat, args=(ended,), name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._export()

    def _repeat(self, ended: threading.Event) -> None:
        while not ended.wait(SECONDS):
            self._export()

    def _export(self) -> None:
        for name, value in self.values.copy().items():
            self._gauges[name].set(value, tags=self._labels)


@contextmanager
def stage_exported(
    recipe: TrainingRecipe, stage: StagePaths
) -> Iterator[Callable[[StageProgress | None], None]]:
    """Exports a stage for the length of the block, which passes the progress of its workers, or
    None before their first step."""
    labels = {"run": recipe.output, "stage": stage.name, "dataset": recipe.datasets_label}
    gauges, bad_before, now = _Gauges(TRAINING, labels), _written(stage.bad_step), time.time()
    gauges.values |= {
        "flowmapsr_last_step_seconds": now,
        "flowmapsr_checkpoint_seconds": now,
        "flowmapsr_bad_step": 0,
    }

    def update(progress: StageProgress | None) -> None:
        gauges.values["flowmapsr_restarts"] = len(restarts(stage))
        if progress is not None:
            gauges.values |= _values(progress)

    with gauges.exported():
        try:
            yield update
        finally:
            gauges.values["flowmapsr_bad_step"] = _written(stage.bad_step) != bad_before


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _values(progress: StageProgress) -> dict[str, float]:
    values = {
        "flowmapsr_step": progress.step,
        "flowmapsr_steps_planned": progress.steps,
        "flowmapsr_loss": progress.headline_value,
        "flowmapsr_images_per_second": progress.images_per_second,
        "flowmapsr_data_wait_fraction": progress.data_wait_fraction,
        "flowmapsr_memory_bytes": progress.memory_gb * 1e9,
        "flowmapsr_last_step_seconds": progress.updated,
    }
    if progress.checkpoint_step:
        values["flowmapsr_checkpoint_seconds"] = progress.checkpoint_time
    return values


@contextmanager
def build_exported(
    plan: Plan, pending: Sequence[ShardTask]
) -> Iterator[Callable[[ShardTask], None]]:
    """Exports a build for the length of the block, which passes each of the pending tasks once it
    is done."""
    gauges = _Gauges(BUILD, {"dataset": plan.output})
    open_tasks = {task.index for task in pending}
    tasks = [task for task in plan.tasks if task.index not in open_tasks]
    everything = {photo.file.uri for task in plan.tasks for photo in task.photos}
    photos = {photo.file.uri for task in tasks for photo in task.photos}
    gauges.values |= {
        "flowmapsr_dataset_samples_done": sum(task.num_samples for task in tasks),
        "flowmapsr_dataset_samples_planned": plan.num_samples,
        "flowmapsr_dataset_photos_done": len(photos),
        "flowmapsr_dataset_photos_planned": len(everything),
        "flowmapsr_dataset_tasks_done": len(tasks),
        "flowmapsr_dataset_tasks_planned": len(plan.tasks),
    }

    def add(task: ShardTask) -> None:
        photos.update(photo.file.uri for photo in task.photos)
        gauges.values["flowmapsr_dataset_samples_done"] += task.num_samples
        gauges.values["flowmapsr_dataset_photos_done"] = len(photos)
        gauges.values["flowmapsr_dataset_tasks_done"] += 1

    with gauges.exported():
        yield add

"""What rank 0 of a stage adds to the parent MLflow run: curves over all stages, the best and last
of what was measured on held-out samples, and what the training has cost so far.

It writes to journals in the run's folder and sends nothing: that is the parent's tracker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import takewhile

from training.run_dir.paths import CURVES_JOURNAL, StagePaths, stage_paths
from training.run_dir.records import WorkerGroup
from training.run_dir.starts import count_restarts, read_progress, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Metrics, Picture
from training.tracking.journal import journals, read_metrics

HELD_OUT, PICTURES = "val/", "pictures/"
CURVES = ("loss/", "gan/", HELD_OUT)
"""Groups of metrics that the parent run shows, beside these:"""
SPEED, DATA_WAIT, IMAGES = "perf/images_per_second", "perf/data_wait_fraction", "data/images_seen"
MORE_CURVES = {"optim/gradient_norm", SPEED, DATA_WAIT}
HIGHER_IS_BETTER = ("psnr", "ssim", "gain")
"""Of held-out metrics, by their first word; of all others lower is."""


class RunCurves:
    """The part of one start of a stage; made when that start is recorded."""

    def __init__(
        self, recipe: TrainingRecipe, stage: StagePaths, workers: WorkerGroup, *, hours: float
    ) -> None:
        """
        Args:
            hours: of all workers together, over all starts of the stage so far.
        """
        self._price, self._on_gpus = recipe.hourly_price, workers.on_gpus
        self._journals = journals(stage.run)
        stages = stage_paths(recipe)
        earlier = takewhile(lambda one: one.name != stage.name, stages)
        records = [record for one in earlier if (record := one.finished_record())]
        self._steps = sum(record.steps for record in records)
        self._images = sum(record.images_seen for record in records)
        self._restarts = sum(map(count_restarts, stages))
        others = [one for one in stages if one.name != stage.name]
        self._hours = sum(map(_hours, others))
        self._gpu_hours = sum(_hours(one) for one in others if _on_gpus(one))
        before = read_metrics(stage.run, name=CURVES_JOURNAL)
        last = {name: series.values[-1] for name, series in before.items()}
        self._best = {name: value for name, value in last.items() if name.startswith("best/")}
        waited, of = last.get("cost/data_wait_fraction", 0.0), last.get("cost/worker_hours", 0.0)
        self._waited = waited * of
        self._reported = hours

    def metrics(self, step: int, values: Mapping[str, float], *, hours: float) -> None:
        """Adds a stage's metrics, of which not all are shown.

        Args:
            hours: as at the start.
        """
        shown = {
            name: value
            for name, value in values.items()
            if name.startswith(CURVES) or name in MORE_CURVES
        }
        held_out = {
            name.removeprefix(HELD_OUT): value
            for name, value in values.items()
            if name.startswith(HELD_OUT)
        }
        shown |= self._best_and_last(held_out) | self._costs(values, hours)
        if shown:
            now = int(time.time() * 1000)
            event = Metrics(step=self._steps + step, time_ms=now, values=shown)
            self._journals.curves.append(event)

    def picture(self, key: str, step: int, path: str) -> None:
        """Adds a picture of a stage, if it is one of those that compare trainings."""
        if key.startswith(PICTURES):
            picture = Picture(key=key, step=self._steps + step, path=path)
            self._journals.pictures.append(picture)

    def _best_and_last(self, held_out: Mapping[str, float]) -> dict[str, float]:
        for name, value in held_out.items():
            best = self._best.get(f"best/{name}")
            if math.isfinite(value) and (best is None or _is_better(name, value, best)):
                self._best[f"best/{name}"] = value
        names = [f"best/{name}" for name in held_out]
        best_now = {name: self._best[name] for name in names if name in self._best}
        return best_now | {f"last/{name}": value for name, value in held_out.items()}

    def _costs(self, values: Mapping[str, float], hours: float) -> dict[str, float]:
        """What all stages have cost, at a report of the training loop."""
        if DATA_WAIT not in values:
            return {}
        self._waited += values[DATA_WAIT] * (hours - self._reported)
        self._reported = hours
        worker_hours = self._hours + hours
        costs = {
            "cost/worker_hours": worker_hours,
            "cost/restarts": float(self._restarts),
            "cost/data_wait_fraction": self._waited / worker_hours if worker_hours else 0.0,
        }
        if IMAGES in values:
            costs["cost/images_seen"] = self._images + values[IMAGES]
        if self._on_gpus or self._gpu_hours:
            costs["cost/gpu_hours"] = self._gpu_hours + (hours if self._on_gpus else 0.0)
        if self._price is not None:
            costs["cost/price"] = self._price * worker_hours
        return costs


def _is_better(name: str, value: float, best: float) -> bool:
    return value > best if name.startswith(HIGHER_IS_BETTER) else value < best


def _hours(stage: StagePaths) -> float:
    progress = read_progress(stage)
    return progress.worker_hours if progress else 0.0


def _on_gpus(stage: StagePaths) -> bool:
    starts = read_starts(stage)
    return bool(starts) and starts[-1].workers.on_gpus

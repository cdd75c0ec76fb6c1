"""What rank 0 of a stage adds to the parent MLflow run: curves over all stages, the best and last
of what was measured on held-out samples, and what the training has cost so far.

It writes to journals in the run's folder and sends nothing: that is the parent's tracker.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping

from training.run_dir.paths import CURVES_JOURNAL, StagePaths
from training.run_dir.records import WorkerGroup
from training.run_dir.starts import FINISHED, read_starts
from training.settings.held_out import HELD_OUT, is_better, is_error
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Artifact, Event, Metrics, Picture
from training.tracking.journal import journals, read_metrics
from training.tracking.summary.stage_facts import facts_of_stages, facts_of_stages_set_aside

PICTURES = "pictures/"
CURVES = ("loss/", "gan/", HELD_OUT)
"""Groups of metrics that the parent run shows, beside these:"""
SPEED, DATA_WAIT, IMAGES = "perf/images_per_second", "perf/data_wait_fraction", "data/images_seen"
MORE_CURVES = {"optim/gradient_norm", "perf/validation_fraction", SPEED, DATA_WAIT}


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
        stages, aside = facts_of_stages(recipe), facts_of_stages_set_aside(recipe)
        self._restarts = sum(len(one.restarts) for one in (*stages, *aside))
        others = [*aside, *(one for one in stages if one.folder.name != stage.name)]
        # A later one is done where this one is trained anew, as its folder was removed. Where this
        # one is trained further, it goes on after the later ones.
        earlier = itertools.takewhile(lambda one: one.folder.name != stage.name, stages)
        is_further = any(start.ended_before == FINISHED for start in read_starts(stage))
        self._steps = sum(one.steps for one in (others if is_further else (*aside, *earlier)))
        self._images = sum(one.record.images_seen for one in others if one.record)
        self._hours = sum(one.hours for one in others)
        self._gpu_hours = sum(one.hours for one in others if one.on_gpus)
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
            if name.startswith(HELD_OUT) and _is_compared(name)
        }
        shown |= self._best_and_last(held_out) | self._costs(values, hours)
        if shown:
            now = int(time.time() * 1000)
            event = Metrics(step=self._steps + step, time_ms=now, values=shown)
            self._journals.curves.append(event)

    def write(self, *events: Event) -> None:
        """Adds what is no metric."""
        for event in events:
            is_file = isinstance(event, Artifact)
            (self._journals.pictures if is_file else self._journals.curves).append(event)

    def picture(self, key: str, step: int, path: str) -> None:
        """Adds a picture of a stage, if it is one of those that compare trainings."""
        if key.startswith(PICTURES):
            picture = Picture(key=key, step=self._steps + step, path=path)
            self._journals.pictures.append(picture)

    def _best_and_last(self, held_out: Mapping[str, float]) -> dict[str, float]:
        for name, value in held_out.items():
            best = self._best.get(f"best/{name}")
            if math.isfinite(value) and (best is None or is_better(name, value, best)):
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


def _is_compared(name: str) -> bool:
    """Whether a held-out metric has a best: not the baseline, nor a loss that is no error."""
    return not name.endswith("bicubic") and (is_error(name) or "loss/" not in name)

"""What the folder of a stage tells: how far it is, how it went, what was measured. Read once for
all tables and texts; knows nothing of MLflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from training.run_dir.further import stages_set_aside
from training.run_dir.paths import StagePaths, stage_paths
from training.run_dir.records import StageProgress, StageRecord
from training.run_dir.starts import Start, read_progress, read_starts
from training.settings.held_out import higher_is_better, is_error
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.tracking.journal import Series, read_metrics


@dataclass(frozen=True)
class StageFacts:
    """A stage as it is now."""

    settings: StageSettings
    folder: StagePaths
    record: StageRecord | None
    progress: StageProgress | None
    starts: list[Start]

    @cached_property
    def metrics(self) -> dict[str, Series]:
        return read_metrics(self.folder.root)

    @property
    def steps(self) -> int:
        if self.record is not None:
            return self.record.steps
        return self.progress.step if self.progress else 0

    @property
    def images(self) -> int:
        if self.record is not None:
            return self.record.images_seen
        return round(self.last("data/images_seen") or 0.0)

    @property
    def restarts(self) -> list[Start]:
        return [start for start in self.starts if start.is_restart]

    @property
    def hours(self) -> float:
        """Of all workers together."""
        return self.progress.worker_hours if self.progress else 0.0

    @property
    def on_gpus(self) -> bool:
        return bool(self.starts) and self.starts[-1].workers.on_gpus

    @property
    def errors(self) -> dict[str, Series]:
        """The losses that are errors, of training (`loss/...`) and held out (`val/loss/...`)."""
        return {name: series for name, series in self.metrics.items() if is_error(name)}

    def last(self, name: str) -> float | None:
        return self.metrics[name].values[-1] if name in self.metrics else None

    def mean(self, name: str) -> float | None:
        return fmean(self.metrics[name].values) if name in self.metrics else None

    def best(self, name: str) -> float | None:
        """Of a held-out metric, `val/...`; without the values of a model that diverged."""
        values = self.metrics[name].values if name in self.metrics else []
        pick = max if higher_is_better(name) else min
        return pick(filter(math.isfinite, values), default=None)


def stage_facts(
    recipe: TrainingRecipe, folder: StagePaths, *, stage: str | None = None
) -> StageFacts:
    """
    Args:
        stage: its name, where that is not the folder's.
    """
    return StageFacts(
        settings=recipe.stage(stage or folder.name),
        folder=folder,
        record=folder.finished_record(),
        progress=read_progress(folder),
        starts=read_starts(folder),
    )


def facts_of_stages(recipe: TrainingRecipe) -> list[StageFacts]:
    """Of all stages, in their order."""
    return [stage_facts(recipe, folder) for folder in stage_paths(recipe)]


def facts_of_stages_set_aside(recipe: TrainingRecipe) -> list[StageFacts]:
    """Of those that are trained anew, as they were."""
    return [
        stage_facts(recipe, kept, stage=kept.name.partition(".")[0])
        for kept in stages_set_aside(recipe)
    ]

"""Which validation was the best one so far, and whether that was too long ago."""

from __future__ import annotations

from collections.abc import Mapping

from datagen.errors import FlowmapsrError
from training.checkpoints.records import BestValue
from training.settings.held_out import is_better
from training.settings.stage import StageSettings


class BestSoFar:
    """The best value of every watched metric of a stage; the same on all workers."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings = settings
        self.watched = settings.watched
        self.found: dict[str, BestValue] = {}

    def restore(self, found: Mapping[str, BestValue]) -> None:
        """Continues from what a checkpoint has; metrics that are watched only now begin anew."""
        self.found = {name: found[name] for name in self.watched if name in found}

    def add(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Compares a validation; returns whether a watched metric has a new best value. What it
        did not measure waits for the next one."""
        improved = False
        for name in (one for one in self.watched if one in metrics):
            value, best = metrics[name], self.found.get(name)
            if best is None or is_better(name, value, best.value):
                self.found[name] = BestValue(value=value, step=step)
                improved = True
            else:
                self.found[name] = best.model_copy(update={"waited": best.waited + 1})
        return improved

    def check(self, metrics: Mapping[str, float]) -> None:
        """Refuses a watched metric that validation does not measure, at its first one.

        Raises:
            FlowmapsrError: naming it and those that are measured.
        """
        for name in self.watched:
            if not metrics:
                raise FlowmapsrError(
                    f"stage {self.settings.name!r} watches {name}, but the dataset holds nothing "
                    "out: build it with validation_fraction=0.02, or remove keep_best and "
                    "early_stopping"
                )
            if name not in metrics:
                raise FlowmapsrError(
                    f"stage {self.settings.name!r} watches {name}, which is not measured on this "
                    f"dataset; there are {', '.join(sorted(metrics))}"
                )

    @property
    def exhausted(self) -> bool:
        """Whether the stage ends early."""
        early = self.settings.early_stopping
        best = None if early is None else self.found.get(early.metric)
        return early is not None and best is not None and best.waited >= early.patience

    def early_stopping(self) -> str:
        """How far it is, in words; empty without it."""
        early = self.settings.early_stopping
        best = None if early is None else self.found.get(early.metric)
        if early is None or best is None:
            return ""
        return (
            f"{early.metric} was best at step {best.step} ({best.value:.4g}), "
            f"{best.waited} of {early.patience} validations without a better one"
        )

    @property
    def best(self) -> BestValue | None:
        """By the metric that chooses the stage's model."""
        return self.found.get(self.settings.best_metric or "")

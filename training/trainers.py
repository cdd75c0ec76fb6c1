"""One step of a stage's networks, behind one interface: what the loop calls, whatever the method.

Knows engines and objectives; knows no loader, no tracker and no files but its own state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training.engine import Engine
from training.loader import Batch
from training.objectives.flow_maps import LOSS_NAMES, Losses, TrainedModel
from training.settings import StageSettings

Objective = Callable[[TrainedModel, Batch, torch.Generator], Losses]
"""A batch to the losses of a model; all its draws come from the generator."""
LOSS_METRICS = tuple(f"loss/{name}" for name in LOSS_NAMES)


class Trainer(Protocol):
    """The networks of one stage on one worker."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the rows of a step's sums; the first has samples at every step, and is shown."""

    @property
    def model(self) -> TrainedModel:
        """The network of the stage, as it is at the moment."""

    @property
    def gradient_norm(self) -> float:
        """Norm of the last update's gradient; not finite when the gradient was not."""

    @property
    def converged(self) -> bool:
        """Whether the stage may end before its last step."""

    def micro_step(self, batch: Batch, generator: torch.Generator, *, step: int) -> Losses:
        """Trains on a micro batch; the last one of a step updates. `sums` are (len(metrics), 2)."""

    def end_step(self, sums: Tensor, *, step: int) -> None:
        """Hears a step's sums over all micro batches and workers."""

    def report(self, step: int) -> dict[str, float]:
        """Rates and gradient norms of the step that ended last."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside it the network's parameters are whole on this worker; every worker must enter."""

    def save(self, folder: Path) -> None:
        """Writes this worker's part of the state below `folder`; every worker must call it."""

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote; every worker must call it."""


class ObjectiveTrainer:
    """One engine that minimises one objective."""

    metrics = LOSS_METRICS
    converged = False

    def __init__(self, engine: Engine, objective: Objective, settings: StageSettings) -> None:
        self.engine = engine
        self.objective = objective
        self.settings = settings

    @property
    def model(self) -> TrainedModel:
        return trained_model(self.engine)

    @property
    def gradient_norm(self) -> float:
        return self.engine.gradient_norm

    def micro_step(self, batch: Batch, generator: torch.Generator, *, step: int) -> Losses:
        losses: Losses = self.engine(self.objective, batch, generator)
        self.engine.backward(losses.total, batch.micro)
        self.engine.step(learning_rate(self.settings, step))
        return losses

    def end_step(self, sums: Tensor, *, step: int) -> None:
        """Nothing to remember: this stage ends with its last step."""

    def report(self, step: int) -> dict[str, float]:
        return {
            "optim/gradient_norm": self.engine.gradient_norm,
            "optim/learning_rate": learning_rate(self.settings, step),
        }

    def whole(self) -> AbstractContextManager[None]:
        return self.engine.whole(self.model.net)

    def save(self, folder: Path) -> None:
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        self.engine.load(folder)


def trained_model(engine: Engine) -> TrainedModel:
    """The model inside an engine."""
    assert isinstance(engine.module, TrainedModel)
    return engine.module


def learning_rate(settings: StageSettings, step: int) -> float:
    """Rate of a step: a linear warm-up, then a cosine down to `final_learning_rate_fraction`."""
    warm = min(1.0, (step + 1) / (settings.learning_rate_warmup + 1))
    final = settings.final_learning_rate_fraction
    cosine = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return settings.learning_rate * warm * (final + (1 - final) * cosine)

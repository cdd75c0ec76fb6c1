"""One step of a stage's networks, behind one interface: what the loop calls, whatever the method.

Knows engines and objectives; knows no loader, no tracker and no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from training.checkpoints.reader import SavedState
from training.checkpoints.records import Share
from training.data.loader import Batch
from training.engine.engine import Engine
from training.flowmap.objective import LOSS_NAMES, Losses, TrainedModel
from training.settings.stage import StageSettings

Objective = Callable[[TrainedModel, Batch, torch.Generator], Losses]
"""A batch to the losses of a model; all its draws come from the generator."""
MODEL = "model"
"""Name of the network in a checkpoint."""
LOSS_METRICS = tuple(f"loss/{name}" for name in LOSS_NAMES)
ERROR_METRICS = ("loss/fm", "loss/sd")
"""The squared errors among them, before weighting."""


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

    def work(self, step: int) -> str:
        """What a step does: those that answer alike cost alike."""

    def micro_step(self, batch: Batch, generator: torch.Generator, *, step: int) -> Losses:
        """Trains on a micro batch; the last one of a step updates. `sums` are (len(metrics), 2)."""

    def end_step(self, sums: Tensor, *, step: int) -> None:
        """Hears a step's sums over all micro batches and workers."""

    def report(self, step: int) -> dict[str, float]:
        """Rates and gradient norms of the step that ended last."""

    def averaged(self) -> AbstractContextManager[None]:
        """Inside it the network has the weights that the stage would end with now: their moving
        averages where `ema_decay` is set, else its own. Every worker must enter."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside it the network's parameters are whole on this worker; every worker must enter."""

    def snapshot(self) -> Share:
        """This worker's share of the state, in host memory; every worker must call it."""

    def restore(self, saved: SavedState) -> None:
        """Puts back what all workers' `snapshot` gave; every worker must call it."""

    def close(self) -> None:
        """Lets the networks' memory go."""


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

    def work(self, step: int) -> str:
        return "update"

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

    def averaged(self) -> AbstractContextManager[None]:
        return self.engine.averaged()

    def whole(self) -> AbstractContextManager[None]:
        return self.engine.whole(self.model.net)

    def snapshot(self) -> Share:
        return Share({MODEL: self.engine.snapshot()})

    def restore(self, saved: SavedState) -> None:
        self.engine.restore(saved.network(MODEL))

    def close(self) -> None:
        self.engine.close()


def trained_model(engine: Engine) -> TrainedModel:
    """The model inside an engine."""
    assert isinstance(engine.module, TrainedModel)
    return engine.module


def learning_rate(settings: StageSettings, step: int) -> float:
    """Rate of a step: a linear warm-up, then a cosine down to `lr_final_fraction`."""
    warm = min(1.0, (step + 1) / (settings.lr_warmup_steps + 1))
    final = settings.lr_final_fraction
    cosine = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return settings.learning_rate * warm * (final + (1 - final) * cosine)

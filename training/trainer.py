"""One step of a stage's networks behind one interface: what the loop calls for any kind of model.

A system (`training/system_protocol.py`) provides an objective, or its own trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.checkpoints.reader import SavedState
from training.checkpoints.records import Share
from training.data.loader import Batch
from training.engine.engine import Engine
from training.settings.stage import StageSettings, learning_rate

NETWORK = "model"
"""Name of the network in a checkpoint."""

StepTerms = Mapping[str, tuple[float, float]]
"""A step's terms over all micro batches and workers, by name: the sum over samples, and how many
samples it has."""


@dataclass(frozen=True)
class Term:
    """One reported part of a loss, kept as a sum and a count: adding them over micro batches and
    workers gives exact means, also where one of these had no sample."""

    sum: Tensor
    """Scalar without gradient."""
    count: int

    @classmethod
    def of(cls, values: Tensor) -> Term:
        """The term of samples' values (n,); n may be 0."""
        return cls(values.detach().sum(), len(values))


@dataclass(frozen=True)
class Losses:
    """The loss to minimize, and what is reported of it."""

    total: Tensor
    """Scalar with gradient."""
    terms: Mapping[str, Term]
    """By the names that MLflow shows, `loss/...`."""
    over_time: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Of the terms that depend on a time t: each sample's t and value, (n,) each."""

    def stacked(self, names: Sequence[str]) -> Tensor:
        """Sums and counts (len(names), 2), float64, so that one all-reduce carries all of them.

        Args:
            names: of all terms of the stage; one that is missing here counts no sample.
        """
        unknown = self.terms.keys() - set(names)
        assert not unknown, f"terms that the objective does not name: {sorted(unknown)}"
        none = Term(torch.zeros_like(self.total.detach()), 0)
        terms = [self.terms.get(name, none) for name in names]
        sums = torch.stack([term.sum for term in terms]).double()
        counts = torch.tensor([term.count for term in terms], dtype=torch.float64)
        return torch.stack([sums, counts.to(sums.device, non_blocking=True)], dim=1)


class Reported(Protocol):
    """The terms of a step."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of all that may be reported, in a fixed order."""

    @property
    def headline(self) -> str:
        """The term that progress shows; it has samples at every step."""

    @property
    def guarded(self) -> tuple[str, ...]:
        """Terms that are never negative, whose common mean must not explode (`LossGuard`)."""


class Objective(Reported, Protocol):
    """A batch to the losses of a model."""

    def __call__(self, model: Any, batch: Batch, generator: torch.Generator) -> Losses:
        """The loss of one micro batch; all its random numbers come from `generator`."""


class StageModel(nn.Module):
    """Everything that a stage optimizes, and among it the network that the stage is for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, objective: Callable[..., Losses], batch: Batch, generator: torch.Generator
    ) -> Losses:
        """Runs the objective inside this module's forward, where DeepSpeed's hooks expect it."""
        return objective(self, batch, generator)


class Trainer(Reported, Protocol):
    """The networks of one stage on one worker."""

    @property
    def engine(self) -> Engine:
        """Of the network that the stage is for."""

    @property
    def gradient_norm(self) -> float:
        """Norm of the last update's gradient; not finite when the gradient was not."""

    @property
    def converged(self) -> bool:
        """Whether the stage may end before its last step."""

    @property
    def convergence(self) -> str:
        """How far that is, in words; empty for a trainer that always takes all steps."""

    def step_kind(self, step: int) -> str:
        """What a step does: steps of one kind cost alike."""

    def micro_step(self, batch: Batch, generator: torch.Generator, *, step: int) -> Losses:
        """Trains on a micro batch; the last one of a step updates the weights."""

    def end_step(self, terms: StepTerms, *, step: int) -> None:
        """Receives the step's terms, summed over micro batches and workers."""

    def metrics(self, step: int) -> dict[str, float]:
        """Learning rates and gradient norms of `step`, which was the last one."""

    def snapshot(self) -> Share:
        """This worker's share of the state, in host memory; every worker must call it."""

    def restore(self, saved: SavedState) -> None:
        """Puts back what all workers' `snapshot` gave; every worker must call it."""

    def close(self) -> None:
        """Releases the networks' memory."""


class ObjectiveTrainer:
    """One engine that minimizes one objective."""

    converged, convergence = False, ""

    def __init__(self, engine: Engine, objective: Objective, settings: StageSettings) -> None:
        self.engine = engine
        self.objective = objective
        self.settings = settings
        self.terms = objective.terms
        self.headline = objective.headline
        self.guarded = objective.guarded

    @property
    def gradient_norm(self) -> float:
        return self.engine.gradient_norm

    def step_kind(self, step: int) -> str:
        return "update"

    def micro_step(self, batch: Batch, generator: torch.Generator, *, step: int) -> Losses:
        losses: Losses = self.engine(self.objective, batch, generator)
        self.engine.backward(losses.total, batch.micro)
        self.engine.step(learning_rate(self.settings, step))
        return losses

    def end_step(self, terms: StepTerms, *, step: int) -> None:
        """No early stopping."""

    def metrics(self, step: int) -> dict[str, float]:
        return {
            "optim/gradient_norm": self.engine.gradient_norm,
            "optim/learning_rate": learning_rate(self.settings, step),
        }

    def snapshot(self) -> Share:
        return Share({NETWORK: self.engine.snapshot()})

    def restore(self, saved: SavedState) -> None:
        self.engine.restore(saved.network(NETWORK))

    def close(self) -> None:
        self.engine.close()

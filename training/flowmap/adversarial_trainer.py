"""Two engines in one loop: a LoRA generator and a discriminator, updated in turn (RPGAN)."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoints.reader import SavedState
from training.checkpoints.records import Share
from training.data.loader import Batch
from training.engine.engine import Engine
from training.flowmap.adversarial import discriminator_loss, generator_loss, two_step_prediction
from training.flowmap.conditions import usual_guidance
from training.flowmap.objective import TOTAL, FlowMapStageModel
from training.settings.adversarial import AdversarialSettings, ConvergenceSettings
from training.settings.stage import StageSettings, learning_rate
from training.trainer import Losses, Objective, StepTerms, Term

DISCRIMINATOR_LOSS, GENERATOR_LOSS = "gan/discriminator", "gan/generator"
REAL_SCORE, FAKE_SCORE = "gan/real_score", "gan/fake_score"
GENERATOR, DISCRIMINATOR, SCORES = "generator", "discriminator", "scores.json"
"""Names in a checkpoint."""


def turn(step: int, *, warmup: int) -> Literal["generator", "discriminator"]:
    """Whose update a step is: the discriminator's alone at first, then in turn, generator first."""
    alone = step < warmup
    return "discriminator" if alone or (step - warmup) % 2 else "generator"


class AdversarialTrainer:
    headline = DISCRIMINATOR_LOSS
    """Steps of both networks have it; the objective's losses belong to the generator's alone."""

    def __init__(
        self,
        generator: Engine,
        discriminator: Engine,
        objective: Objective,
        *,
        stage: StageSettings,
        settings: AdversarialSettings,
    ) -> None:
        self.engine = generator
        self.discriminator = discriminator
        self.stage = stage
        self.discriminator_stage = discriminator_settings(stage, settings)
        self.warmup = settings.discriminator.warmup_steps
        self.scores = ScoreAverages(settings.convergence)
        self.objective = objective
        self.objective_weight = settings.flow_map_loss_weight
        assert isinstance(generator.module, FlowMapStageModel)
        self.u = generator.module.net.velocity(usual_guidance(stage.guidance))
        scores = (DISCRIMINATOR_LOSS, GENERATOR_LOSS, REAL_SCORE, FAKE_SCORE)
        self.terms = (*scores, *objective.terms)
        self.guarded = objective.guarded

    @property
    def gradient_norm(self) -> float:
        """The larger one of both networks' last updates, or not finite as soon as one is not."""
        norms = (self.engine.gradient_norm, self.discriminator.gradient_norm)
        return max(norms) if all(map(math.isfinite, norms)) else math.inf

    @property
    def converged(self) -> bool:
        return self.scores.met

    @property
    def convergence(self) -> str:
        return self.scores.summary()

    def step_kind(self, step: int) -> str:
        return turn(step, warmup=self.warmup)

    def micro_step(self, batch: Batch, generator: torch.Generator, *, step: int) -> Losses:
        if self.step_kind(step) == "discriminator":
            return self._train_discriminator(batch, step)
        with without_gradients(self.discriminator.module):
            losses: Losses = self.engine(self.generator_losses, batch, generator)
            self.engine.backward(losses.total, batch.micro)
        self.engine.step(learning_rate(self.stage, step))
        return losses

    def generator_losses(
        self, model: FlowMapStageModel, batch: Batch, generator: torch.Generator
    ) -> Losses:
        """softplus(D(x0) - D(x0_hat)) + lambda_orig * the stage's objective.

        Reads the discriminator without training it: the module is called outside its engine, with
        its parameters' gradients off, else DeepSpeed's hooks would count them.
        """
        original = self.objective(model, batch, generator)
        fake = self.discriminator.module(two_step_prediction(self.u, batch.lq))
        with torch.no_grad():
            real = self.discriminator.module(batch.hq)
        total = generator_loss(fake, real) + self.objective_weight * original.total
        # The total is the generator's whole loss, not the original objective's alone.
        whole = Term.of(total.expand(len(batch.hq)))
        return Losses(total, {**score_terms(fake, real), **original.terms, TOTAL: whole})

    def _train_discriminator(self, batch: Batch, step: int) -> Losses:
        with torch.no_grad():
            predicted = two_step_prediction(self.u, batch.lq)
        fake, real = self.discriminator(torch.cat([predicted, batch.hq])).chunk(2)
        loss = discriminator_loss(fake, real)
        self.discriminator.backward(loss, batch.micro)
        self.discriminator.step(learning_rate(self.discriminator_stage, step))
        return Losses(loss, score_terms(fake, real))

    def end_step(self, terms: StepTerms, *, step: int) -> None:
        if step >= self.warmup:
            real, fake = (total / count for total, count in (terms[REAL_SCORE], terms[FAKE_SCORE]))
            self.scores.add(real=real, fake=fake)

    def metrics(self, step: int) -> dict[str, float]:
        return {
            "optim/gradient_norm": self.engine.gradient_norm,
            "optim/learning_rate": learning_rate(self.stage, step),
            "optim/discriminator_gradient_norm": self.discriminator.gradient_norm,
            "optim/discriminator_learning_rate": learning_rate(self.discriminator_stage, step),
        }

    def snapshot(self) -> Share:
        networks = {GENERATOR: self.engine.snapshot(), DISCRIMINATOR: self.discriminator.snapshot()}
        return Share(networks, {SCORES: self.scores.to_json()} if dist.get_rank() == 0 else {})

    def restore(self, saved: SavedState) -> None:
        self.engine.restore(saved.network(GENERATOR))
        self.discriminator.restore(saved.network(DISCRIMINATOR))
        self.scores.restore(saved.text(SCORES))

    def close(self) -> None:
        self.engine.close()
        self.discriminator.close()


def discriminator_settings(stage: StageSettings, settings: AdversarialSettings) -> StageSettings:
    """The stage as the discriminator's engine sees it: with its own rate and weight decay, and no
    average, as nothing is made of it."""
    own = settings.discriminator
    rates = {"learning_rate": own.learning_rate, "weight_decay": own.weight_decay}
    return stage.model_copy(update={**rates, "ema_decay": None, "ema_warmup": None})


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module to its input, but none are made for its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@torch.no_grad()
def score_terms(fake: Tensor, real: Tensor) -> dict[str, Term]:
    """Both networks' losses and their scores (B, ...), each sample's mean over its patches."""
    by_patch = {
        DISCRIMINATOR_LOSS: functional.softplus(fake - real),
        GENERATOR_LOSS: functional.softplus(real - fake),
        REAL_SCORE: real,
        FAKE_SCORE: fake,
    }
    return {name: Term.of(each.flatten(1).mean(dim=1)) for name, each in by_patch.items()}


class ScoreAverages:
    """Moving averages of the real and the fake score; the paper's sign that training is done."""

    def __init__(self, settings: ConvergenceSettings) -> None:
        self.settings = settings
        self._real: deque[float] = deque(maxlen=settings.window)
        self._fake: deque[float] = deque(maxlen=settings.window)
        self._most_apart = -math.inf

    def add(self, *, real: float, fake: float) -> None:
        self._real.append(real)
        self._fake.append(fake)
        if len(self._real) == self.settings.window:
            self._most_apart = max(self._most_apart, self._lead)

    @property
    def _lead(self) -> float:
        return (sum(self._real) - sum(self._fake)) / self.settings.window

    @property
    def _were_apart(self) -> bool:
        return self._most_apart > self.settings.tolerance

    @property
    def met(self) -> bool:
        """Whether the averages met after the real score had led: before, the discriminator has
        learned nothing yet, and where the fake one leads, it no longer does."""
        return self._were_apart and abs(self._lead) <= self.settings.tolerance

    def summary(self) -> str:
        """How far apart the scores are, and were."""
        settings = self.settings
        if len(self._real) < settings.window:
            return f"the scores have no average over {settings.window} steps"
        now = f"the real score leads by {self._lead:.3g} on average of {settings.window} steps"
        if self.met:
            return f"{now}, after {self._most_apart:.3g}"
        if not self._were_apart:
            return (
                f"{now} and never led by {settings.tolerance:g}: the discriminator learns nothing"
            )
        if self._lead < 0:
            return f"{now}, below zero: the discriminator no longer tells real from fake"
        return f"{now}, still more than {settings.tolerance:g}"

    def to_json(self) -> bytes:
        values = {"real": list(self._real), "fake": list(self._fake)}
        apart = {"most_apart": self._most_apart} if math.isfinite(self._most_apart) else {}
        return json.dumps({**values, **apart}).encode()

    def restore(self, data: bytes) -> None:
        values = json.loads(data)  # floats survive JSON exactly
        self._real.extend(values["real"])
        self._fake.extend(values["fake"])
        self._most_apart = values.get("most_apart", -math.inf)

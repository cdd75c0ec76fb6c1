"""Settings of one training stage. Defaults are FlowMapSR's where the paper gives a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from datagen.records import Correctable, Execution, Probability, Settings
from datagen.settings import LATENT_NAMES
from training.settings.adversarial import AdversarialSettings
from training.settings.batch_fields import BatchFields
from training.settings.elir import LatentConsistency
from training.settings.held_out import EarlyStopping, HeldOutMetric
from training.settings.initial_weights import STAGE_NAME, InitialWeights
from training.settings.objective import (
    Guidance,
    NoPerceptual,
    ObjectiveSettings,
    PerceptualSettings,
    SelfDistillation,
)


@dataclass(frozen=True)
class BatchSize:
    """Samples of a step, and how many of them a worker handles at once."""

    global_batch: int
    micro_batch: int

    def accumulation(self, workers: int) -> int:
        """Micro batches of one worker in a step. Rounded up: where the samples do not fill them
        all, some micro batches hold fewer, and the step's mean stays that over its samples."""
        return math.ceil(self.global_batch / (self.micro_batch * workers))

    def fill(self, workers: int) -> float:
        """Samples of a step over those that its micro batches have room for."""
        room = self.micro_batch * self.accumulation(workers) * workers
        return self.global_batch / room


class Budget(Settings):
    """The samples of one of the dataset's pixel budgets, all aspect ratios together."""

    side: int = Field(gt=0)
    """Which one: its `side` in the dataset's `buckets.budgets`."""
    probability: Probability
    """Relative frequency of its steps; 0 leaves its samples out of the stage."""
    global_batch: int | None = Field(None, ge=1)
    """Samples of one of its steps; null takes that of the stage."""
    micro_batch: Execution[int | None] = Field(None, ge=1)
    """Samples that a worker processes at once; null takes that of the stage."""


class StageSettings(Settings):
    """One training stage; its steps are optimizer steps."""

    name: str = Field(examples=["warmup"])
    """Name of its folder and its MLflow run: a-z, 0-9, `-` and `_`."""
    objective: ObjectiveSettings = Field(examples=[{"kind": "flow_matching"}])
    """What it trains."""
    steps: Correctable[int] = Field(ge=1, examples=[1000])
    """Optimizer steps. A finished stage that gets more goes on from where it was, on the learning
    rates of the new length; fewer than are done are refused."""
    global_batch: int = Field(256, ge=1)
    """Samples of a step, all workers together."""
    micro_batch: Execution[int] = Field(8, ge=1)
    """Largest number of samples that a worker processes at once; set it by the GPU's memory. Times,
    noise and gradients do not depend on it, so it may change between starts."""
    budgets: tuple[Budget, ...] | None = Field(None, min_length=1)
    """How often a step draws each of the dataset's pixel budgets, and their batch sizes (appendix
    of FlowMapSR); null draws sizes in proportion to their samples."""
    learning_rate: Correctable[float] = Field(4e-5, gt=0)
    """Learning rate of AdamW after the warm-up."""
    lr_final_fraction: Correctable[float] = Field(1.0, ge=0, le=1)
    """The learning rate falls along a cosine to this part of itself; 1 keeps it constant."""
    lr_warmup_steps: Correctable[int] = Field(0, ge=0)
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    gradient_clipping: Correctable[float] = Field(1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    zero_stage: Execution[Literal[0, 1, 2, 3]] = 1
    """What DeepSpeed shards over workers: 1 the optimizer, 2 also gradients, 3 also weights."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of the network's passes; master weights are always fp32."""
    gradient_checkpointing: Execution[bool] = False
    """Recompute activations in the backward pass: slower, and far less memory."""
    compile: Execution[Literal["none", "student", "all"]] = "none"
    """What `torch.compile` compiles, on a GPU only: the pass with gradient, or also those of the
    targets."""
    dynamic_weighting: bool = True
    """Weighs losses by a learned uncertainty of (t, s), so that all times count alike."""
    degradation: Literal["stored", "fresh"] = "stored"
    """`fresh` degrades the stored HQ pixels anew in every epoch, by the dataset's chain, in the
    loader's threads; the codec encodes the result in each step. Held-out samples stay as stored."""
    perceptual: PerceptualSettings = NoPerceptual()
    """A loss on decoded pixels beside the objective."""
    adversarial: AdversarialSettings | None = None
    """Trains a LoRA against a discriminator, beside the objective; null trains the network."""
    init_from: InitialWeights | None = None
    """An earlier stage, a run or model folder, a diffusers folder, a `.safetensors` file (folders
    are written with a slash) or `models:/NAME/VERSION` of MLflow; for ELIR also `elir:bfr`, `sr`,
    `denoising`, `inpainting` or `bsr`, as published. Null takes the stage before, and random
    weights for the first."""
    min_loaded_fraction: Probability = 0.5
    """Least part of the network's parameters that must be found there: what holds fewer is a
    checkpoint of another architecture."""
    offload: Execution[Literal["none", "optimizer"]] = "none"
    """`optimizer` keeps master weights and AdamW's moments in host memory and updates them there:
    slower, and 12 bytes less GPU memory for each parameter."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights, w <- decay * w + (1 - decay) * new at every step,
    which the stage's model and pictures then use. The paper has none; ELIR needs 0.999."""
    ema_warmup: int | None = Field(None, ge=1)
    """Updates over which that decay rises from 0, as 1 - exp(-update / ema_warmup), so that the
    first weights do not stay in the average; null keeps it constant. ELIR's code has 2000."""
    max_loss_growth: Execution[float | None] = Field(1000.0, gt=1)
    """Ends the stage at a step whose squared error is this many times the median of the last 100
    (in the first 20 steps of the validation before them, if it is larger); null ends it only where
    the error is not finite. Single steps with small batches reach tens of times, and a loss that
    diverges soon passes 1000."""
    validate_every_steps: Execution[int] = Field(500, ge=1)
    """Steps between validations, beside one at the start and one at the end: held-out losses, PSNR
    and SSIM of the weights that the model would have now, and pictures."""
    keep_best: Correctable[HeldOutMetric | None] = None
    """Also keeps the checkpoint with the best value of this metric of validation, such as
    val/psnr_x4_nfe1."""
    early_stopping: Correctable[EarlyStopping | None] = None
    """Ends the stage when a metric of validation has stopped improving, whose best checkpoint is
    kept too; null trains all steps."""
    model_from: Correctable[Literal["last", "best"]] = "last"
    """The checkpoint that becomes the stage's model, from which the next stage starts: the last
    one, or the best by `keep_best` (by `early_stopping` where that is null)."""
    checkpoint_every_steps: Execution[int] = Field(500, ge=1)
    """Steps between checkpoints. Training waits for a copy to memory only, not for the files."""
    keep_checkpoints: Execution[int] = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    keep_every_steps: Execution[int | None] = Field(None, ge=1)
    """Also keeps checkpoints of steps that this divides; a multiple of `checkpoint_every_steps`."""

    def batch_size(self, budget: Budget | None = None) -> BatchSize:
        """The batch size of a budget's steps; of all steps where there are no budgets."""
        if budget is None:
            return BatchSize(self.global_batch, self.micro_batch)
        return BatchSize(
            budget.global_batch or self.global_batch, budget.micro_batch or self.micro_batch
        )

    @property
    def batch_sizes(self) -> tuple[BatchSize, ...]:
        """Of all steps that the stage may draw."""
        if self.budgets is None:
            return (self.batch_size(),)
        return tuple(self.batch_size(one) for one in self.budgets if one.probability > 0)

    @property
    def batch_fields(self) -> BatchFields:
        """What its batches hold."""
        if isinstance(self.objective, LatentConsistency):
            return BatchFields(latents=(), hq_pixels=True, lq_pixels=self.degradation)
        fresh = self.degradation == "fresh"
        wanted = {"hq", *([] if fresh else ["lq"]), *(["neg"] if self.guidance else [])}
        return BatchFields(
            latents=tuple(name for name in LATENT_NAMES if name in wanted),
            hq_pixels=not isinstance(self.perceptual, NoPerceptual),
            lq_pixels="fresh" if fresh else "none",
        )

    @property
    def guidance(self) -> Guidance | None:
        """Of the objective, where that has one."""
        return None if isinstance(self.objective, LatentConsistency) else self.objective.guidance

    @property
    def judged_by(self) -> str:
        """The end of the names of the metrics of quality by which its model is judged: `nfe1`."""
        objective = self.objective
        return f"nfe{objective.segments if isinstance(objective, LatentConsistency) else 1}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, and seldom meant."""
        objective = self.objective
        return objective.warnings if isinstance(objective, LatentConsistency) else ()

    @property
    def watched(self) -> tuple[str, ...]:
        """The held-out metrics of which the best value is kept."""
        early = self.early_stopping
        named = (self.keep_best, None if early is None else early.metric)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def best_metric(self) -> str | None:
        """The held-out metric by which a checkpoint is the best one."""
        if self.keep_best is not None or self.early_stopping is None:
            return self.keep_best
        return self.early_stopping.metric

    @property
    def images_per_step(self) -> float:
        """Samples of a step, on average over the budgets."""
        if self.budgets is None:
            return self.global_batch
        total = sum(one.probability for one in self.budgets)
        weighted = (one.probability * self.batch_size(one).global_batch for one in self.budgets)
        return sum(weighted) / total

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budgets is not None:
            self._check_budgets(self.budgets)
        if not STAGE_NAME.fullmatch(self.name):
            raise ValueError(f"stage name {self.name!r} may hold only a-z, 0-9, '-' and '_'")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(
                "offload=optimizer needs an optimizer that ZeRO shards: set a zero_stage "
                "of 1, 2 or 3, or offload=none"
            )
        if (self.keep_every_steps or 0) % self.checkpoint_every_steps:
            raise ValueError(
                f"keep_every_steps {self.keep_every_steps} is not a multiple of "
                f"checkpoint_every_steps {self.checkpoint_every_steps}: no checkpoint would be "
                "made at most of these steps"
            )
        if self.ema_warmup is not None and self.ema_decay is None:
            raise ValueError(
                f"ema_warmup {self.ema_warmup} is of an average of weights, and ema_decay, which "
                "keeps one, is null: set ema_decay, such as 0.999, or ema_warmup to null"
            )
        if self.zero_stage == 3 and self.compile != "none":
            raise ValueError(
                f"compile={self.compile} needs whole parameters, and ZeRO-3 spreads them: set "
                "compile=none, or a zero_stage of 0, 1 or 2"
            )
        if isinstance(self.objective, LatentConsistency):
            self._check_latent_consistency()
        objective = self.objective
        differentiates = isinstance(objective, SelfDistillation) and objective.differentiates
        if self.compile == "all" and differentiates:
            raise ValueError(
                "compile=all: the targets of the eulerian and lagrangian formulations hold a "
                "derivative, which cannot go through a compiled network: set compile=student, "
                "which leaves the network of the targets as it is"
            )
        if self.adversarial is not None:
            self._check_adversarial(self.adversarial)
        if self.model_from == "best" and self.best_metric is None:
            raise ValueError(
                "model_from=best needs a metric to be best by: set keep_best, such as "
                "keep_best=val/psnr_nfe1"
            )
        return self

    def _check_latent_consistency(self) -> None:
        """It has no part for what belongs to flow maps."""
        if self.dynamic_weighting:
            raise ValueError(
                "dynamic_weighting weighs flow maps by two times, which objective.kind="
                "latent_consistency does not have: set dynamic_weighting=false"
            )
        if not isinstance(self.perceptual, NoPerceptual):
            raise ValueError(
                f"perceptual.kind={self.perceptual.kind} is for flow maps: set "
                "perceptual.kind=none; objective.kind=latent_consistency weighs pixels by beta"
            )
        if self.adversarial is not None:
            raise ValueError(
                "adversarial trains a LoRA of flow maps: leave it out with "
                "objective.kind=latent_consistency"
            )
        if self.gradient_checkpointing or self.compile != "none":
            raise ValueError(
                f"gradient_checkpointing={self.gradient_checkpointing}, compile={self.compile}: "
                "objective.kind=latent_consistency has neither; set false and none"
            )

    def _check_budgets(self, budgets: tuple[Budget, ...]) -> None:
        sides = [one.side for one in budgets]
        if len(set(sides)) != len(sides):
            raise ValueError(f"the sides of budgets must differ: {', '.join(map(str, sides))}")
        if not any(one.probability for one in budgets):
            raise ValueError("the probability of every one of budgets is 0; raise at least one")

    def _check_adversarial(self, settings: AdversarialSettings) -> None:
        if self.dynamic_weighting:
            raise ValueError(
                "an adversarial stage trains LoRA parameters only; set dynamic_weighting to false"
            )
        if self.zero_stage > 2:
            raise ValueError(
                "an adversarial stage calls the discriminator outside its engine, which needs "
                "zero_stage 2 or less"
            )
        warmup = settings.discriminator.warmup_steps
        if warmup >= self.steps:
            raise ValueError(
                f"steps {self.steps} leave none for the generator after the discriminator's "
                f"{warmup} warmup_steps; give more steps or fewer warmup_steps"
            )


def learning_rate(settings: StageSettings, step: int) -> float:
    """Rate of a step: a linear warm-up, then a cosine down to `lr_final_fraction`."""
    warm = min(1.0, (step + 1) / (settings.lr_warmup_steps + 1))
    final = settings.lr_final_fraction
    cosine = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return settings.learning_rate * warm * (final + (1 - final) * cosine)

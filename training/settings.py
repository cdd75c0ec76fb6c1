"""What a user may set about training and evaluation, checked when the recipe is read.

Knows no torch. Defaults are FlowMapSR's where the paper gives a number; every one is a setting.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from datagen.fields import NonNegativeRange, Probability, Settings, flatten
from training.adversarial_settings import AdversarialSettings
from training.batch_settings import BatchSize, Budget
from training.initial_settings import STAGE_NAME, InitialWeights, check_stage_order, origin
from training.prompt_settings import PromptSettings, StandInPrompts
from training.redaction import holds_secret, redacted


class ModelSettings(Settings):
    """Size of `FlowMapNet`, a diffusers `UNet2DConditionModel` (defaults: SDXL-like, 2.43 B)."""

    block_channels: tuple[int, ...] = Field((320, 640, 1280), min_length=1)
    layers_per_block: int = Field(2, ge=1)
    transformer_layers: tuple[Annotated[int, Field(ge=0)], ...] = (0, 2, 10)
    """Transformer layers of each block; 0 makes the block convolutional."""
    attention_heads: tuple[int, ...] = (5, 10, 20)
    norm_groups: int = Field(32, ge=1)
    time_channels: int = Field(256, ge=2, multiple_of=2)
    """Channels of the embedding of s, and of w when `guidance_input` is on."""
    prompt_channels: int = Field(1280, ge=1)
    input_gain: bool = False
    """Predict a gain for every latent value beside the velocity: u = b + g * x. Group norms hide
    how large a latent is, so a small network cannot scale many channels down; with this it can."""
    guidance_input: bool = True
    """Give the guidance strength w to the model as an input, which makes it a choice at inference.
    The paper's model never sees w, and so learns its mean only."""
    time_scale: float = Field(1000.0, gt=0)
    """t enters the U-Net's own time embedding times this. Diffusion checkpoints expect 1000; the
    Eulerian formulation differentiates in t, and 1 makes that derivative 1000 times smaller."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        blocks = len(self.block_channels)
        for name in ("transformer_layers", "attention_heads"):
            if len(getattr(self, name)) != blocks:
                raise ValueError(f"{name} needs {blocks} values, one for each of block_channels")
        for channels, heads in zip(self.block_channels, self.attention_heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise ValueError(
                    f"block_channels {channels} must be divisible by its attention_heads ({heads}) "
                    f"and by norm_groups ({self.norm_groups})"
                )
        return self


class Guidance(Settings):
    """Classifier-free guidance with a positive and a negative prompt (FlowMapSR eq. 5 and 15)."""

    negative_share: Probability = 0.1
    """p_neg: the chance that a sample is a negative one. Its target is the negative latent, its
    prompt c- and its strength 1."""
    strength: NonNegativeRange = (1.0, 3.5)
    """w of all other samples is uniform between these; two equal numbers fix it."""

    @property
    def mean_strength(self) -> float:
        """What the model is used with unless told otherwise, and all that a model without
        `guidance_input` can learn."""
        return sum(self.strength) / 2


class FlowMatching(Settings):
    """L_FM alone (eq. 3): the warm-up."""

    kind: Literal["flow_matching"] = "flow_matching"
    levels: int = Field(7, ge=0, le=20)
    """K: times lie on grids of 2^k intervals, k = 0..K."""
    guidance: Guidance | None = None


class SelfDistillation(Settings):
    """L_FM + L_SD in one batch (eq. 12), in one of the three formulations of a flow map."""

    kind: Literal["self_distillation"] = "self_distillation"
    formulation: Literal["shortcut", "eulerian", "lagrangian"] = "shortcut"
    """SSD (eq. 22), ESD (eq. 21) or LSD (eq. 20)."""
    lsd_velocity: Literal["model", "conditional"] = "model"
    """First term of the Lagrangian target: the model's own velocity at the end of the step, or v
    as the paper has it, which is biased (one step then gives the blurred mean)."""
    derivative: Literal["jvp", "central_difference"] = "jvp"
    """Of the Eulerian and Lagrangian targets: exact in forward mode, or a difference in fp32."""
    levels: int = Field(7, ge=1, le=20)
    flow_matching_share: Probability = 0.75
    """Part of every batch that trains L_FM; the rest trains L_SD."""
    guidance: Guidance | None = None

    @property
    def differentiates(self) -> bool:
        """Whether the target holds a derivative of the model."""
        return self.formulation != "shortcut"


ObjectiveSettings = Annotated[FlowMatching | SelfDistillation, Field(discriminator="kind")]


class NoPerceptual(Settings):
    kind: Literal["none"] = "none"


class PatchPerceptual(Settings):
    """lambda(t) * distance(D(x_t - t u), HQ) on one random patch."""

    strength: float = Field(10.0, gt=0)
    """lambda at t = 0."""
    form: Literal["linear", "quadratic", "cosine"] = "linear"
    """How lambda falls to 0 at t = 1: strength times 1 - t, (1 - t)^2 or (1 + cos(pi t)) / 2."""
    patch: int = Field(512, gt=0, multiple_of=8)
    """Side of the patch, pixels; smaller images are used whole."""


class Charbonnier(PatchPerceptual):
    """sqrt(difference^2 + epsilon^2), averaged: a pixel loss that needs no weights."""

    kind: Literal["charbonnier"] = "charbonnier"
    epsilon: float = Field(1e-3, gt=0)


class Lpips(PatchPerceptual):
    """LPIPS on VGG-16 features (the paper's)."""

    kind: Literal["lpips"] = "lpips"
    weights: str | None = None
    """Safetensors file with the VGG-16 features and the LPIPS linear layers; None downloads both
    once from where torchvision and lpips have them."""


PerceptualSettings = Annotated[NoPerceptual | Charbonnier | Lpips, Field(discriminator="kind")]


EXECUTION = frozenset(
    {
        "zero_stage",
        "offload",
        "gradient_checkpointing",
        "compile",
        "max_loss_growth",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_every",
    }
)
"""Settings of a stage that decide how it is computed, not what: a run may go on with others."""


class StageSettings(Settings):
    """One training stage. `step` is an optimiser step, `micro_batch` is per worker."""

    name: str
    objective: ObjectiveSettings
    steps: int = Field(ge=1)
    global_batch: int = Field(256, ge=1)
    micro_batch: int = Field(8, ge=1)
    budgets: tuple[Budget, ...] | None = Field(None, min_length=1)
    """How often a step draws each of the dataset's pixel budgets, and its batch size (FlowMapSR's
    appendix). When not given, the aspect ratios and sizes come in proportion to their samples."""
    learning_rate: float = Field(4e-5, gt=0)
    final_learning_rate_fraction: float = Field(1.0, ge=0, le=1)
    """The rate falls along a cosine to this part of itself; 1 keeps it constant."""
    learning_rate_warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off. Always handed to DeepSpeed, whose own default is
    1."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, and far less memory."""
    compile: Literal["none", "student", "all"] = "none"
    """What `torch.compile` compiles: the pass with gradient, or also the passes of the targets.
    On a GPU only."""
    dynamic_weighting: bool = True
    perceptual: PerceptualSettings = NoPerceptual()
    adversarial: AdversarialSettings | None = None
    """Trains a LoRA against a discriminator, with `objective` as the original loss."""
    initialise_from: InitialWeights | None = None
    """Where the weights come from; the stage before when not given, else random."""
    initialise_share: Probability = 0.5
    """Least part of the network's parameters that must be found there: what holds less is a
    checkpoint of another architecture."""
    offload: Literal["none", "optimizer"] = "none"
    """`optimizer` keeps master weights and AdamW's moments in the host's memory and updates them
    there: slower, and 12 bytes less of a GPU's memory for each parameter that it holds."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keeps a moving average of the weights, w <- decay * w + (1 - decay) * new at every step, and
    makes the stage's model and pictures of it. The paper has none; ELIR needs 0.999."""
    max_loss_growth: float | None = Field(1000.0, gt=1)
    """A step whose squared error is this many times the median of the last 100 ends the stage, as
    one that is not finite does; None never. Single steps with small batches reach tens of times,
    and a loss that runs away passes 1000 soon."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps. Training stops for a copy to memory only; the files are written beside it."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the last checkpoints stay."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints of steps that this divides stay too; a multiple of `checkpoint_every`."""

    @property
    def needs_negatives(self) -> bool:
        return self.objective.guidance is not None

    @property
    def needs_pixels(self) -> bool:
        return not isinstance(self.perceptual, NoPerceptual)

    def batch_size(self, budget: Budget | None = None) -> BatchSize:
        """The batch size of a budget's steps; of all steps where there are no budgets."""
        own = BatchSize(self.global_batch, self.micro_batch)
        if budget is None:
            return own
        return BatchSize(
            own.global_batch if budget.global_batch is None else budget.global_batch,
            own.micro_batch if budget.micro_batch is None else budget.micro_batch,
        )

    @property
    def batch_sizes(self) -> tuple[BatchSize, ...]:
        """Of all steps that the stage may draw."""
        if self.budgets is None:
            return (self.batch_size(),)
        return tuple(self.batch_size(one) for one in self.budgets if one.probability > 0)

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
                "offload=optimizer needs an optimiser that ZeRO has taken over: set a zero_stage "
                "of 1, 2 or 3, or offload=none"
            )
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every {self.keep_every} is not a multiple of checkpoint_every "
                f"{self.checkpoint_every}: no checkpoint would be made at most of these steps"
            )
        if self.zero_stage == 3 and self.compile != "none":
            raise ValueError(
                f"compile={self.compile} needs whole parameters, and ZeRO-3 spreads them: set "
                "compile=none, or a zero_stage of 0, 1 or 2"
            )
        if isinstance(self.objective, SelfDistillation) and self.objective.differentiates:
            self._check_derivative(self.objective)
        if self.adversarial is not None:
            self._check_adversarial(self.adversarial)
        return self

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

    def _check_derivative(self, objective: SelfDistillation) -> None:
        """Refuses what was seen to fail: jvp on spread or compiled parameters, and differences in
        bf16 (22 to 122 % wrong)."""
        name = objective.formulation
        if objective.derivative == "central_difference":
            if self.precision != "fp32":
                raise ValueError(
                    f"derivative=central_difference of the {name} target is lost in the rounding "
                    f"of precision={self.precision}: set precision=fp32, or derivative=jvp"
                )
        elif self.zero_stage == 3:
            raise ValueError(
                f"derivative=jvp of the {name} target fails on the spread parameters of ZeRO-3: "
                "set a zero_stage of 0, 1 or 2, or objective.derivative=central_difference with "
                "precision=fp32"
            )
        elif self.compile == "all":
            raise ValueError(
                f"derivative=jvp of the {name} target cannot go through a compiled network: set "
                "compile=student, which leaves the network of the targets as it is"
            )


class WorkerRange(Settings):
    """As many workers as there is room for: training goes on with fewer when a node is lost."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}; swap them")
        return self


_PLACEMENT = (
    "output",
    "checkpoints",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "placement",
    "max_failures",
    "stall_seconds",
    "peak_tflops",
    "loader_threads",
    "cache_gb",
    "cache_folder",
    "max_rotten_fraction",
)
"""Where and how fast a run is made, and how it is watched; all other fields decide its result."""


class TrainingRecipe(Settings):
    """Everything that decides a training run, and where it lives."""

    manifest: str
    """The dataset: its `manifest.json`, or the folder or `s3://` prefix that holds it."""
    output: str
    """The run's local folder; workers on other machines must see it at the same path."""
    checkpoints: str | None = None
    """Local folder or `s3://` prefix for the checkpoints of all stages, which every worker must
    reach; `<output>/stages/<name>/checkpoints` when not given."""
    workers: Annotated[int, Field(ge=1)] | WorkerRange = 1
    """Processes that train, one for each GPU; `{min: 2, max: 4}` takes what the cluster can give,
    also in the middle of a run. The global batch stays the same."""
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float | None = Field(None, ge=0)
    """Null takes one where the cluster has GPUs; 0 trains on the CPU."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """`pack` fills one node after the other, `spread` lays workers over many; the strict ones wait
    until that can be had in full."""
    seed: int = Field(0, ge=0, lt=2**63)
    experiment: str = "flowmapsr"
    """MLflow experiment of the run."""
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = StandInPrompts()
    stages: tuple[StageSettings, ...] = Field(min_length=1)
    shuffle_shards: int = Field(8, ge=1)
    """Samples of a bucket mix inside windows of this many shards, which are read together."""
    loader_threads: int = Field(2, ge=1)
    """Threads of each worker that read and decode ahead; the batches do not depend on them. One
    reads some thousand latents a second; more help where pixels are decoded as well."""
    cache_gb: float = Field(50.0, ge=0)
    """Most disk space, 10^9 bytes, for copies of a dataset's shards on S3, on each machine; with 0
    every sample is a request of its own."""
    cache_folder: str | None = None
    """Folder for these copies on each machine's own disk; in the system's folder for temporary
    files when not given."""
    max_rotten_fraction: Probability = 0.001
    """Largest part of the training samples that may be skipped because they cannot be read or are
    not what they should be; more end the run. So one damaged shard in a thousand does not end weeks
    of training, and below a thousand samples, where it is quickly mended, the first one does."""
    images_every: int = Field(500, ge=1)
    """Steps between image grids in MLflow."""
    max_failures: int = Field(3, ge=0)
    """Times the workers of a stage may die and be restarted from the last checkpoint."""
    stall_seconds: float = Field(600.0, ge=1)
    """A worker without progress for so long is ended, with its stack traces kept, and counts as one
    failure. Progress is a micro step, a checkpoint or a picture; start and first step may take
    three times as long."""
    peak_tflops: float | None = Field(None, gt=0)
    """What a worker's device can do at best, 10^12 floating-point operations per second, which
    `perf/mfu` is a share of. Known for common GPUs, and measured on a CPU, when not given."""

    @field_validator("output")
    @classmethod
    def _local(cls, output: str) -> str:
        if "://" in output:
            raise ValueError("a training run lies in a local folder; its dataset may be on S3")
        return output

    @field_validator("checkpoints")
    @classmethod
    def _readable(cls, checkpoints: str | None) -> str | None:
        if checkpoints is not None and "://" in checkpoints.removeprefix("s3://"):
            raise ValueError("checkpoints go to a local folder or an s3:// address")
        return checkpoints

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ: {', '.join(names)}")
        check_stage_order(self.stages)
        self._check_secrets()
        for stage in self.stages:
            for size in stage.batch_sizes:
                share = size.micro_batch * self.most_workers
                if size.global_batch % share:
                    raise ValueError(
                        f"stage {stage.name!r}: global_batch {size.global_batch} is not a multiple "
                        f"of micro_batch {size.micro_batch} x workers {self.most_workers} = {share}"
                    )
        return self

    @property
    def least_workers(self) -> int:
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def most_workers(self) -> int:
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    def _check_secrets(self) -> None:
        """A recipe is stored, sent and shown wherever its run is."""
        for name, value in flatten(self.model_dump(mode="json")).items():
            if holds_secret(value):
                raise ValueError(
                    f"{name.split('.')[0]}: a recipe holds no secrets, and {redacted(value)} has "
                    "one; give it in the environment (AWS_*)"
                )

    def stage(self, name: str) -> StageSettings:
        return next(stage for stage in self.stages if stage.name == name)

    def origin(self, name: str) -> str | None:
        """Where the weights of the stage `name` come from: a stage's name, a place, or None for
        random ones."""
        return origin(self.stages, name)

    def content(self) -> dict[str, object]:
        """The settings that decide the result: not where and how fast it is made."""
        placement: dict[str, Any] = dict.fromkeys(_PLACEMENT, True)
        return self.model_dump(
            mode="json", exclude=placement | {"stages": {"__all__": set(EXECUTION)}}
        )

    def digest(self) -> str:
        """SHA-256 of what decides the result, as canonical JSON.

        The number of workers changes no more than the order in which gradients are added.
        """
        canonical = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class EvaluationSettings(Settings):
    """Held-out photos are degraded by the dataset's own chain at fixed scales, then restored."""

    photos: str
    """Folder of held-out photos."""
    scales: tuple[Annotated[float, Field(gt=1)], ...] = Field((4.0, 8.0), min_length=1)
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4), min_length=1)
    seed: int = Field(0, ge=0)
    lora_scale: float | None = Field(None, ge=0)
    """Strength of an adversarial model's LoRA; the model's own when not given."""
    guidance: float | None = Field(None, ge=0)
    """Guidance strength w of a model that takes it as an input; the model's own when not given."""

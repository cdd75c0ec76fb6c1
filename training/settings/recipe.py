"""Settings of a training run: the recipe of `flowmapsr train`, checked when it is read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from datagen.io.redaction import holds_secret, redacted
from datagen.records import Execution, Location, Probability, Settings, flatten
from training.settings.elir import ElirModelSettings, LatentConsistency
from training.settings.held_out import needed_metric
from training.settings.initial_weights import is_public, is_stage
from training.settings.model import DEFAULT_KIND, ModelSettings, PromptSettings, StandInPrompts
from training.settings.sources import SourceSettings, check_sources
from training.settings.stage import StageSettings
from training.settings.validation import ValidationSettings


def _with_kind(model: Any) -> Any:
    """Recipes of earlier versions name no kind."""
    return {"kind": DEFAULT_KIND, **model} if isinstance(model, Mapping) else model


AnyModel = Annotated[
    Annotated[ModelSettings | ElirModelSettings, Field(discriminator="kind")],
    BeforeValidator(_with_kind),
]
SampleCount = Annotated[int, Field(ge=1)] | Literal["all"]


class WorkerRange(Settings):
    """As many workers as the cluster has room for, also after a node is lost or added."""

    min: int = Field(ge=1)
    """Training waits until there are so many."""
    max: int = Field(ge=1)
    """Largest number that is used."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}; swap them")
        return self


LABELED = 3
"""Datasets that a label names."""


class TrainingRecipe(Settings):
    """Everything that decides a training run, and where and how it runs."""

    manifest: Execution[Location] = Field(examples=["/path/to/dataset"])
    """The dataset: its `manifest.json`, or the folder or `s3://` prefix with it. It may move while
    a run is unfinished: its digest identifies it. With `sources` it is left out, or the first."""
    sources: tuple[SourceSettings, ...] = ()
    """Several datasets at once, instead of `manifest`:
    `[{uri: A, weight: 3}, {uri: B, weight: 1}]`. Their samples are dealt out by weight, exactly."""
    output: Execution[Location] = Field(examples=["/path/to/output"])
    """Local folder of the run; workers on other machines must see it at the same path."""
    checkpoints: Execution[Location | None] = None
    """Local folder or `s3://` prefix for the checkpoints of all stages, which every worker must
    reach; null keeps them in `<output>/stages/<name>/checkpoints`."""
    workers: Execution[Annotated[int, Field(ge=1)] | WorkerRange] = 1
    """Processes that train, one for each GPU. `{min: 2, max: 4}` takes what the cluster has, also
    in the middle of a run. The global batch stays the same and is shared by any number."""
    cpus_per_worker: Execution[int] = Field(1, ge=1)
    """CPUs that each worker reserves, and the threads that torch uses in it under any launcher."""
    gpus_per_worker: Execution[Literal[0, 1] | None] = None
    """1 trains on GPUs, 0 on CPUs; null trains on GPUs where the cluster has some."""
    placement: Execution[Literal["pack", "spread"]] = "pack"
    """`pack` fills one node after the other, `spread` uses many."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of initial weights, of the order of samples and of all random draws."""
    mlflow_experiment: Execution[str] = "flowmapsr"
    """MLflow experiment of a new run; one that MLflow knows already stays where it is."""
    upload_models_gb: Execution[float] = Field(2.0, ge=0)
    """Largest model of a stage that MLflow gets a copy of, 10^9 bytes, so that a registered version
    of it loads on any machine. A larger one stays in the run's folder, and MLflow says where: its
    server takes a file in one request, and keeps the model of each stage of each training."""
    hourly_price: Execution[float | None] = Field(None, ge=0)
    """Price of one worker for an hour, in your currency: what the training has cost is then shown
    beside its hours."""
    model: AnyModel = ModelSettings()
    """The network, whose `kind` is that of the system."""
    prompts: PromptSettings = StandInPrompts()
    """The two prompts that condition a flow map."""
    stages: tuple[StageSettings, ...] = Field(
        min_length=1,
        examples=[[{"name": "warmup", "objective": {"kind": "flow_matching"}, "steps": 1000}]],
    )
    """What is trained, one stage after the other."""
    shuffle_window_shards: int = Field(8, ge=1)
    """Samples are shuffled inside windows of this many shards of a bucket, read together."""
    loader_threads: Execution[int] = Field(2, ge=1)
    """Threads of each worker that prefetch samples; batches do not depend on their number. One
    reads some thousand latents a second; more help where pixels are decoded too."""
    cache_gb: Execution[float] = Field(50.0, ge=0)
    """Largest disk space on each machine for copies of shards from S3, 10^9 bytes; 0 requests every
    sample from S3."""
    cache_dir: Execution[Location | None] = None
    """Folder for these copies on a local disk of each machine; null uses the folder for temporary
    files."""
    max_bad_sample_fraction: Execution[Probability] = 0.001
    """Largest part of the training samples that may be skipped as unreadable or invalid; more end
    the run. So one damaged shard in a thousand does not end weeks of training, and in a dataset of
    less than a thousand samples the first bad one does."""
    validation_samples: Execution[SampleCount] = 64
    """Largest number of held-out samples that each validation restores: the same ones in every
    training on a dataset. `all`: the whole validation split, in the order of its shards. A dataset
    without a validation split has none."""
    validation: Execution[ValidationSettings] = ValidationSettings()
    """More metrics of held-out samples."""
    max_failures: Execution[int] = Field(3, ge=0)
    """How often workers may die and be restarted from the last checkpoint before the run fails."""
    watchdog_seconds: Execution[float] = Field(600.0, ge=1)
    """A worker without progress for this long is killed, with its stack traces saved, and counts
    as one failure. Progress is a micro step, a checkpoint or a picture; start, first step and
    waiting for the files of a checkpoint may take three times as long. A process that stands still
    as a whole, stopped or waiting for a lost disk, is killed from outside 15 seconds later."""

    @model_validator(mode="before")
    @classmethod
    def _first_of_sources(cls, data: Any) -> Any:
        """`manifest` is the first of the sources where it is left out."""
        sources = data.get("sources") if isinstance(data, Mapping) else None
        if not isinstance(sources, list | tuple) or not sources or "manifest" in data:
            return data
        uri = sources[0].get("uri") if isinstance(sources[0], Mapping) else None
        return data if uri is None else {**data, "manifest": uri}

    @field_validator("output")
    @classmethod
    def _local(cls, output: str) -> str:
        if "://" in output:
            raise ValueError("a training run must be in a local folder; its dataset may be on S3")
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
        check_sources(self.manifest, self.sources)
        self._check_order()
        self._check_secrets()
        self._check_system()
        self._check_watched()
        for stage in self.stages:
            for size in stage.batch_sizes:
                if size.global_batch < self.most_workers:
                    raise ValueError(
                        f"stage {stage.name!r}: global_batch {size.global_batch} is less than "
                        f"workers {self.most_workers}, and some would have no sample: raise "
                        "global_batch, or use fewer workers"
                    )
        return self

    def _check_watched(self) -> None:
        """A stage's best checkpoint needs what validation measures."""
        for stage in self.stages:
            for watched in stage.watched:
                metric = needed_metric(watched)
                if metric is not None and metric not in self.validation.metrics:
                    raise ValueError(
                        f"stage {stage.name!r} watches {watched}, which is not measured: set "
                        f"validation.metrics=[{metric}]"
                    )

    @property
    def places(self) -> tuple[str, ...]:
        """Of all datasets: those of `sources`, or `manifest` alone."""
        return tuple(source.uri for source in self.sources) or (self.manifest,)

    @property
    def datasets_label(self) -> str:
        """All datasets in one label of logs and metrics; of many the first and a count."""
        named, others = self.places[:LABELED], len(self.places[LABELED:])
        return ", ".join([*named, *([f"{others} more"] if others else [])])

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Of all datasets; None takes all their samples equally often."""
        given = [source.weight for source in self.sources if source.weight is not None]
        return tuple(given) or None

    @property
    def least_workers(self) -> int:
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def most_workers(self) -> int:
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    def _check_system(self) -> None:
        """Each system has its own objectives and conditions."""
        is_elir = isinstance(self.model, ElirModelSettings)
        for stage in self.stages:
            trained = isinstance(stage.objective, LatentConsistency)
            if trained != is_elir and self.model.kind in ("elir", DEFAULT_KIND):
                needed = "latent_consistency" if is_elir else "flow_matching or self_distillation"
                raise ValueError(
                    f"stage {stage.name!r}: objective.kind={stage.objective.kind} does not train "
                    f"model.kind={self.model.kind}: set objective.kind={needed}, or "
                    f"model.kind={DEFAULT_KIND if is_elir else 'elir'}"
                )
            if stage.init_from is not None and is_public(stage.init_from) and not is_elir:
                raise ValueError(
                    f"stage {stage.name!r}: init_from={stage.init_from} is of model.kind=elir, not "
                    f"{self.model.kind}: name other weights"
                )
            if (
                isinstance(self.model, ElirModelSettings)
                and isinstance(stage.objective, LatentConsistency)
                and stage.objective.train_encoder
                and not self.model.has_coarse
            ):
                raise ValueError(
                    f"stage {stage.name!r}: objective.train_encoder=true, but with "
                    "model.parts=field no loss reaches the encoder: set train_encoder=false"
                )
        if is_elir and self.prompts != StandInPrompts():
            raise ValueError(
                f"prompts.kind={self.prompts.kind}: prompts condition flow maps, and "
                "model.kind=elir has none: leave prompts out"
            )

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

    def stages_from(self, name: str) -> tuple[StageSettings, ...]:
        """The stage of that name and those after it."""
        return self.stages[[stage.name for stage in self.stages].index(name) :]

    def numbered(self, name: str) -> str:
        """A stage's name after its number: `2 distill`."""
        names = [stage.name for stage in self.stages]
        return f"{names.index(name) + 1} {name}"

    def initial_weights_of(self, name: str) -> str | None:
        """Where a stage's weights come from: its `init_from`, else the name of the stage before,
        else None for random ones."""
        index = [stage.name for stage in self.stages].index(name)
        before = self.stages[index - 1].name if index else None
        return self.stages[index].init_from or before

    def _check_order(self) -> None:
        """Raises ValueError for stages that cannot follow each other, with the fix."""
        for index, stage in enumerate(self.stages):
            earlier = [before.name for before in self.stages[:index]]
            listed = ", ".join(earlier) or "none"
            source = self.initial_weights_of(stage.name)
            if source is not None and is_stage(source) and source not in earlier:
                close = difflib.get_close_matches(source, earlier, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"earlier: {listed}"
                raise ValueError(
                    f"stage {stage.name!r}: init_from {source!r} is no earlier stage ({hint}); "
                    "write a folder with a slash, such as ./folder"
                )
            if stage.adversarial is not None:
                self._check_trained(stage.name)

    def _check_trained(self, name: str) -> None:
        """An adversarial stage adds a LoRA to a frozen network that already takes steps."""
        earlier = {stage.name: stage for stage in self.stages}
        source = self.initial_weights_of(name)
        while source is not None and source in earlier:
            if earlier[source].objective.kind != "flow_matching":
                return
            source = self.initial_weights_of(source)
        if source is None:
            raise ValueError(
                f"stage {name!r} is adversarial: it adds a LoRA to a frozen network that takes "
                "two steps, and nothing before it learns steps. Put a self_distillation stage "
                "before it, or set its init_from to a trained model"
            )

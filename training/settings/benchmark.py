"""Settings of a benchmark: which models are compared, with which of their knobs swept, and what is
made of it beside the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from datagen.records import Execution, Location, Settings
from training.settings.evaluation import SOURCES, EvaluationSettings, MetricName

Knob = Annotated[float, Field(ge=0)]


class BenchmarkModel(Settings):
    """A model that is compared; `NAME=FOLDER` or `FOLDER` on the command line."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    """In the table; null tells it by its folder, or its system where it is alone."""
    folder: Location = Field(examples=["/data/run"])
    """Of a model, or of a training run, whose last finished stage is taken."""

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        name, named, folder = given.partition("=")
        return {"name": name, "folder": folder} if named and "/" not in name else {"folder": given}


class TimingSettings(Settings):
    """Seconds of restoring one picture, measured apart, by one worker that has its machine for
    itself: the median of several calls after some that do not count."""

    sides: tuple[Annotated[int, Field(ge=16)], ...] = Field((512, 1024), min_length=1)
    """Of the restored pictures, which are square, pixels."""
    calls: int = Field(20, ge=1)
    """Timed calls for each number of steps and each side."""
    warm_ups: int = Field(3, ge=0)
    """Calls before them."""


class CurveSettings(Settings):
    """A curve of distortion against perception, written into each model's folder for the presets
    of `flowmapsr upscale`."""

    distortion: MetricName = "psnr_y"
    """How far results are from the originals."""
    perception: tuple[MetricName, ...] = Field(("lpips_alex", "niqe"), min_length=1)
    """How good they look: the first of these that can be measured."""


class BenchmarkRecipe(EvaluationSettings):
    """Models and baselines on the same photos, in one table."""

    output: Execution[Location] = Field(examples=["/path/to/output"])
    """Folder or `s3://` prefix for results, summary and report."""
    models: tuple[BenchmarkModel, ...] = Field(min_length=1, examples=[["/path/to/run"]])
    """What is compared; photos are degraded by the chain of the first one."""
    lora_scales: tuple[Knob, ...] = ()
    """LoRA scales, each a row of its own; empty takes `lora_scale`. Models without one have one
    row."""
    guidances: tuple[Knob, ...] = ()
    """Guidance strengths, each a row of its own; empty takes `guidance`. Models that do not take it
    as an input have one row."""
    timing: TimingSettings | None = None
    """Also time pictures of some sides; without photos nothing else is measured."""
    curve: CurveSettings | None = None
    """Also write a quality curve into each model's folder."""
    photos_per_chunk: Execution[int] = Field(4, ge=1)
    """What a worker measures before it writes its results."""
    workers: Execution[Annotated[int, Field(ge=1)] | Literal["auto"]] = "auto"
    """At most so many at once; `auto` takes as many as fit."""
    report: Execution[bool] = True
    """Whether `report.html` is made."""
    mlflow_experiment: Execution[str] = "flowmapsr-benchmarks"
    """Experiment of MLflow that gets the table."""

    @model_validator(mode="before")
    @classmethod
    def _scales_of_pairs(cls, given: Any) -> Any:
        """Recipes name scales, and pairs have theirs."""
        if isinstance(given, Mapping) and given.get("pairs") is not None:
            return {**given, "scales": None}
        return given

    @field_validator("models")
    @classmethod
    def _told_apart(cls, models: tuple[BenchmarkModel, ...]) -> tuple[BenchmarkModel, ...]:
        for what in ("name", "folder"):
            given = [getattr(one, what) for one in models if getattr(one, what) is not None]
            for one in given:
                if given.count(one) > 1:
                    raise ValueError(f"{one} is there twice; give each model once")
        return models

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.timing is not None and not self.measures_photos:
            return self
        return super()._one_source()  # type: ignore[operator]

    @model_validator(mode="after")
    def _curve_has_originals(self) -> Self:
        if self.curve is not None and not self.has_originals:
            raise ValueError(
                "a curve needs originals: give photos or pairs instead of no_reference"
            )
        return self

    @model_validator(mode="after")
    def _swept_or_set(self) -> Self:
        for one, many in (("lora_scale", self.lora_scales), ("guidance", self.guidances)):
            if many and getattr(self, one) is not None:
                raise ValueError(f"{one} and {one}s are both given; leave {one} out")
        return self

    @property
    def measures_photos(self) -> bool:
        return any(getattr(self, name) is not None for name in SOURCES)

    def evaluation(self) -> EvaluationSettings:
        """What is measured of each model, without its knobs."""
        names = set(EvaluationSettings.model_fields) - {"lora_scale", "guidance"}
        values = {name: getattr(self, name) for name in names}
        if self.curve is not None:
            more = (self.curve.distortion, *self.curve.perception)
            values["metrics"] = tuple(dict.fromkeys((*self.metrics, *more)))
        return EvaluationSettings.model_construct(**values)

"""What a run reports: the records that a journal line can hold, without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from datagen.dataset.manifest import Dataset
from datagen.io.redaction import redacted
from datagen.records import FrozenModel, flatten

Public = Annotated[str, AfterValidator(redacted)]
"""Text without secrets: passwords in addresses are removed."""
NOTE = "mlflow.note.content"
"""The tag with the text, Markdown, at the top of the page of a run or a model."""
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Begin(FrozenModel):
    """The run is active, whatever an earlier `End` said."""

    kind: Literal["begin"] = "begin"


class Metrics(FrozenModel):
    # Else a value that is not finite is written as null, and the line cannot be read again.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    kind: Literal["metrics"] = "metrics"
    step: int
    time_ms: int
    values: dict[str, float]


class Params(FrozenModel):
    kind: Literal["params"] = "params"
    values: dict[str, Public]


class Tags(FrozenModel):
    kind: Literal["tags"] = "tags"
    values: dict[str, Public]


class Picture(FrozenModel):
    kind: Literal["picture"] = "picture"
    key: str
    step: int
    path: str


class Artifact(FrozenModel):
    kind: Literal["artifact"] = "artifact"
    path: str
    folder: str | None = None


class DatasetInput(FrozenModel):
    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    source: Public
    samples: int
    weight: float | None = None
    """In a mixture: its part of the training samples."""

    @classmethod
    def of(cls, dataset: Dataset, weight: float | None = None) -> Self:
        manifest, root = dataset
        return cls(
            name=PurePosixPath(root).name,
            digest=manifest.digest,
            source=root,
            samples=manifest.num_samples,
            weight=weight,
        )

    @property
    def short_digest(self) -> str:
        """As many characters as every MLflow store keeps."""
        return self.digest[:36]


class Model(FrozenModel):
    """A checkpoint or the model of a finished stage, for MLflow's page of models."""

    kind: Literal["model"] = "model"
    name: str
    type: Literal["checkpoint", "stage model"]
    step: int
    path: Public
    """Where its files are."""
    upload: bool
    """Whether MLflow gets a copy of them."""
    params: dict[str, Public]
    tags: dict[str, Public]
    dataset: DatasetInput
    held_out: Metrics | None = None
    """What was measured of it on the dataset's held-out samples."""


class KeptCheckpoints(FrozenModel):
    """The checkpoints of a stage that are on disk."""

    kind: Literal["kept checkpoints"] = "kept checkpoints"
    reasons: dict[int, str]
    """By step, why each is kept."""


class End(FrozenModel):
    kind: Literal["end"] = "end"
    status: Status
    reason: Public | None = None


Event = Annotated[
    Begin
    | Metrics
    | Params
    | Tags
    | Picture
    | Artifact
    | DatasetInput
    | Model
    | KeptCheckpoints
    | End,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def described(
    settings: Mapping[str, Any], datasets: Sequence[DatasetInput], tags: Mapping[str, str]
) -> list[Event]:
    """Settings, datasets and tags of a run; the tag of the datasets is of all of them, if `tags`
    has no other."""
    return [
        Params(values=flatten(settings)),
        Tags(values={"dataset.digest": digest_tag(datasets), **tags}),
        *datasets,
    ]


def digest_tag(datasets: Sequence[DatasetInput]) -> str:
    """By which the trainings on a dataset are found."""
    return ", ".join(dataset.digest for dataset in datasets)

"""What a run reports: the records that a journal line can hold, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from datagen.dataset.manifest import Dataset
from datagen.io.redaction import redacted
from datagen.records import FrozenModel, flatten

Public = Annotated[str, AfterValidator(redacted)]
"""Text without secrets: passwords in addresses are removed."""
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


class End(FrozenModel):
    kind: Literal["end"] = "end"
    status: Status
    reason: Public | None = None


Event = Annotated[
    Begin | Metrics | Params | Tags | Picture | Artifact | DatasetInput | End,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def described(
    settings: Mapping[str, Any], dataset: Dataset, tags: Mapping[str, str]
) -> list[Event]:
    """Settings, dataset and tags of a run."""
    manifest, root = dataset
    return [
        Params(values=flatten(settings)),
        Tags(values={"dataset.digest": manifest.digest, **tags}),
        DatasetInput(
            name=PurePosixPath(root).name,
            digest=manifest.digest,
            source=root,
            samples=manifest.num_samples,
        ),
    ]

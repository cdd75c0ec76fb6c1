"""The base of every stored record and user setting: how they are read, written and compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from os import PathLike, fspath
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo

from datagen.errors import FlowmapsrError
from datagen.io import storage

_LONGEST_INPUT = 40
_NOT_SET = "not set"

Probability = Annotated[float, Field(ge=0, le=1)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds as given; ValueError when the lower one is above the upper one."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Bound = TypeVar("Bound")
Range = Annotated[tuple[Bound, Bound], AfterValidator(_ordered)]
NonNegativeRange = Range[Annotated[float, Field(ge=0)]]
PositiveRange = Range[Annotated[float, Field(gt=0)]]


def absolute(location: str) -> str:
    """A local path made absolute, as workers have other folders; `s3://` and the like stay.

    Raises:
        ValueError: it begins with the home folder of an unknown user.
    """
    if "://" in location or not location:
        return location
    path = os.path.expanduser(location)
    if path.startswith("~"):
        raise ValueError("no such home folder; write the full path")
    return os.path.abspath(path)


FROM_USER = "from user"
"""The context of validating a recipe that a user gives, not one that was stored or sent."""


def located(location: str, info: ValidationInfo) -> str:
    """Absolute where a user gives it; `~` wherever it comes from, as a form of Prefect's pages."""
    given = info.context == FROM_USER or location.startswith("~")
    return absolute(location) if given else location


def _given(location: object) -> object:
    """Anything but nothing, which is what `output=$UNSET` gives on the command line."""
    if location in (None, ""):
        raise ValueError(
            "nothing is given: write a location, or set the variable that should hold it"
        )
    return location


Location = Annotated[str, BeforeValidator(_given), AfterValidator(located)]
"""A path, or an address such as `s3://bucket/set`."""


def is_folder(source: str) -> bool:
    """Whether a source of weights is a local folder, not a name of the Hugging Face hub."""
    return source.startswith(("/", ".", "~"))


def _located_folder(source: str, info: ValidationInfo) -> str:
    return located(source, info) if is_folder(source) else source


HubOrFolder = Annotated[str, AfterValidator(_located_folder)]
"""A name of the Hugging Face hub (`owner/name`), or a local folder that starts with `/`, `.` or
`~`."""


class FrozenModel(BaseModel):
    """Base of every record: unknown fields are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Group(Enum):
    """What a setting decides. A field says so by its type: `Correctable[float]`, `Execution[int]`;
    all others are content, with all that is inside them."""

    CONTENT = "content"
    """The result. It stays as it is from the first step to the last."""
    CORRECTABLE = "correctable"
    """The result, but it may be changed until the stage is finished; the rest of the stage is
    computed with the new value."""
    EXECUTION = "execution"
    """Where and how it runs, and how it is watched: free to change, and no part of a digest."""


Value = TypeVar("Value")
Correctable = Annotated[Value, Group.CORRECTABLE]
Execution = Annotated[Value, Group.EXECUTION]


def group_of(field: FieldInfo) -> Group:
    return next((mark for mark in field.metadata if isinstance(mark, Group)), Group.CONTENT)


class Settings(FrozenModel):
    """Base of everything that a user can set. What is written below a field describes it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    def content(self, *, fixed: bool = False) -> dict[str, Any]:
        """The settings that decide the result: not where and how it is made.

        With `fixed` only those that stay the same from the first step to the last.
        """
        groups = {Group.CONTENT} if fixed else {Group.CONTENT, Group.CORRECTABLE}
        content: dict[str, Any] = _select(self, self.model_dump(mode="json"), groups)
        return content

    def digest(self, *, fixed: bool = False) -> str:
        """SHA-256 of `content` as canonical JSON."""
        content = self.content(fixed=fixed)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _select(value: Any, dumped: Any, groups: set[Group]) -> Any:
    """The part of a dumped value whose fields, at any depth, are of these groups."""
    if isinstance(value, BaseModel):
        return {
            name: _select(getattr(value, name), dumped[name], groups)
            for name, field in type(value).model_fields.items()
            if group_of(field) in groups and name in dumped  # else left out by `exclude_if`
        }
    if isinstance(value, tuple):
        return [_select(*pair, groups) for pair in zip(value, dumped, strict=True)]
    return dumped


Record = TypeVar("Record", bound=FrozenModel)


class UnreadableRecord(FlowmapsrError):
    """A record exists but is corrupt or from another version."""


def read_record(path: str | PathLike[str], kind: type[Record], *, remedy: str) -> Record | None:
    """The record in a file; None where there is no file.

    Raises:
        UnreadableRecord: naming the file, its first fault and the `remedy`.
    """
    try:
        data = storage.read_bytes(fspath(path))
    except storage.NotFoundError:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise UnreadableRecord(
            f"{path} is corrupt, or from another version of flowmapsr ({first_fault(error)}); "
            f"{remedy}"
        ) from error


def first_fault(error: ValidationError) -> str:
    """Field, what is wrong with it, and its value where that is short."""
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:
        return fault["msg"]
    value = fault["input"]
    short = isinstance(value, str | int | float | None) and len(str(value)) <= _LONGEST_INPUT
    found = f", not {value!r}" if short and fault["type"] != "missing" else ""
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}{found}"


def to_json(record: BaseModel, *, exclude: set[str] | None = None) -> bytes:
    """Readable JSON whose bytes depend on the content only."""
    return as_json(record.model_dump(mode="json", exclude=exclude))


def as_json(content: dict[str, Any]) -> bytes:
    """What `to_json` makes of a record with that content."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def to_compact_json(record: BaseModel) -> bytes:
    """JSON on one line, for records of millions of entries."""
    return record.model_dump_json().encode() + b"\n"


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings by their dotted names: `{"a": {"b": 1}}` -> `{"a.b": "1"}`."""
    return {name: str(value) for name, value in _leaves("", values)}


@dataclass(frozen=True)
class Change:
    """A setting that differs between two recipes."""

    name: str
    """Dotted, as on the command line."""
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name} was {self.old}, is {self.new}"


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The settings that differ, by name."""
    before, after = dict(_leaves("", old)), dict(_leaves("", new))
    pairs = {
        name: (before.get(name, _NOT_SET), after.get(name, _NOT_SET))
        for name in sorted(before.keys() | after.keys())
    }
    return [Change(name, str(one), str(two)) for name, (one, two) in pairs.items() if one != two]


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values under dotted names; the items of a list of settings are numbered."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        yield prefix, value
        return
    for name, item in items:
        yield from _leaves(f"{prefix}.{name}" if prefix else str(name), item)

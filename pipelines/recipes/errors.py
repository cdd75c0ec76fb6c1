"""Formats pydantic's errors about a recipe as lines that name the field, the value and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipelines.recipes.overrides import did_you_mean, nearest, shortened

_Location = tuple[int | str, ...]
_WRONG_TYPE = ("_type", "_parsing", "literal_error", "none_required")
"""How pydantic's error types for a value of the wrong type end."""
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "none": "null",
}
"""By the first word of such an error type, what the value should have been."""


def describe(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> list[str]:
    """One line for each error: `stages.distill.steps = 0: must be greater than or equal to 1`."""
    kept: list[ErrorDetails] = []
    unions: dict[_Location, list[ErrorDetails]] = {}
    for fault in error.errors(include_url=False):
        union = _walk(fault["loc"], model, data).union
        (kept if union is None else unions.setdefault(union, [])).append(fault)
    for union, branches in unions.items():
        kept += _of_fitting_branches(branches, union, _walk(union, model, data).models)
    return [_line(one, _walk(one["loc"], model, data)) for one in kept if not _follows(one, kept)]


def _follows(fault: ErrorDetails, faults: list[ErrorDetails]) -> bool:
    """Whether a list only counts as too short because its items have errors."""
    deeper = (other["loc"][: len(fault["loc"])] for other in faults if other is not fault)
    return fault["type"] == "too_short" and fault["loc"] in deeper


def _of_fitting_branches(
    faults: list[ErrorDetails], union: _Location, models: list[type[BaseModel]]
) -> list[ErrorDetails]:
    """The errors in those branches of an untagged union whose type the value has, or one error for
    the union if it has none of them."""
    fitting = [
        fault
        for fault in faults
        if len(fault["loc"]) > len(union) + 1 or not fault["type"].endswith(_WRONG_TYPE)
    ]
    choices = " or ".join(dict.fromkeys(_wanted(fault, models) for fault in faults))
    no_branch = {**faults[0], "loc": union, "type": "no_branch", "msg": f"must be {choices}"}
    return fitting or [cast(ErrorDetails, no_branch)]


def _wanted(fault: ErrorDetails, models: list[type[BaseModel]]) -> str:
    """What a branch takes, as a person writes it: `a whole number`, `'auto'`, `{min, max}`."""
    context = fault.get("ctx", {})
    if fault["type"] == "literal_error":
        return str(context["expected"])
    for model in models:
        if model.__name__ == context.get("class_name"):
            return f"{{{', '.join(model.model_fields)}}}"
    return _WANTED.get(fault["type"].split("_")[0], "a list")


@dataclass
class _Place:
    """A place in a recipe, found by an error's location."""

    names: list[str]
    """The path as the user writes it: stages by name, without the tags that pydantic adds."""
    owners: list[type[BaseModel]]
    """Models that may hold it; tags choose among the models of a union."""
    fields: list[FieldInfo]
    """What it may be in them."""
    models: list[type[BaseModel]]
    """Models that it may hold itself."""
    union: _Location | None = None
    """Location of the first untagged union on the way. Pydantic's name of its branch, which
    follows there, is no part of the data."""


def _walk(location: _Location, model: type[BaseModel], data: Any) -> _Place:
    place = _Place([], [], [], [model])
    for index, part in enumerate(location):
        keys = data if isinstance(data, Mapping) else {}
        if isinstance(part, int) and isinstance(data, Mapping):
            continue  # one item, written without brackets
        if isinstance(part, int):
            data = data[part] if isinstance(data, list | tuple) and part < len(data) else None
            name = data.get("name") if isinstance(data, Mapping) else None
            place.names.append(name if isinstance(name, str) else str(part))
        elif part not in keys and keys.get("kind") == part:
            place.models = [one for one in place.models if part in _kinds(one)]
        elif part not in keys and not any(part in one.model_fields for one in place.models):
            place.union = location[:index] if place.union is None else place.union
        else:
            place.names.append(part)
            place.owners, data = place.models, keys.get(part)
            place.fields = [m.model_fields[part] for m in place.owners if part in m.model_fields]
            place.models = [one for field in place.fields for one in models_in(field.annotation)]
    return place


def _line(fault: ErrorDetails, place: _Place) -> str:
    path = ".".join(place.names) or "recipe"
    kind = fault["type"]
    if kind == "missing":
        return f"{path}: must be given{_example(path, place.fields)}"
    if kind in ("tuple_type", "list_type"):
        return f"{path}{_given(fault)}: must be a list{_example(path, place.fields, place.models)}"
    if kind == "extra_forbidden":
        known = sorted({name for owner in place.owners for name in owner.model_fields})
        return f"{path} = {_value(fault)}: unknown key; {nearest(place.names[-1], known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_line(fault, path)
    if kind == "literal_error":
        choices = fault["ctx"]["expected"]
        hint = did_you_mean(fault["input"], _names(choices))
        return f"{path} = {_value(fault)}: choose {choices}{hint}"
    if kind in ("model_type", "model_attributes_type"):
        example = next(
            (f", for example {path}={on_one_line(_needed(m))}" for m in place.models if _needed(m)),
            "",
        )
        return f"{path}{_given(fault)}: {_rule(fault)}{example}"
    return f"{path}{_given(fault)}: {_rule(fault)}"


def _tag_line(fault: ErrorDetails, path: str) -> str:
    choices = fault["ctx"].get("expected_tags", "")
    if fault["type"] == "union_tag_not_found":
        if isinstance(fault["input"], Mapping):
            return f"{path}.kind: must be given; the fields of {path} depend on it"
        return f"{path} = {_value(fault)}: must be a mapping with a kind"
    tag = fault["ctx"]["tag"]
    return f"{path}.kind = {tag!r}: choose {choices}{did_you_mean(tag, _names(choices))}"


def _names(choices: str) -> list[str]:
    """The names in pydantic's `'a', 'b' or 'c'`."""
    return [name.strip("' ") for name in choices.replace(" or ", ", ").split(",")]


def _rule(fault: ErrorDetails) -> str:
    """pydantic's sentence as a rule: what the value must be."""
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping of settings"
    text = fault["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "must be").replace("Input should", "must")
    if fault["type"] == "string_type" and not isinstance(fault["input"], Mapping | list):
        text += f"; on the command line quote it twice: '\"{fault['input']}\"'"
    return text


def _given(fault: ErrorDetails) -> str:
    """The value, left out where it is a whole tree and the text names the error itself."""
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping | BaseModel):
        return ""
    return f" = {_value(fault)}"


def _value(fault: ErrorDetails) -> str:
    return shortened(fault["input"])


def _example(path: str, fields: list[FieldInfo], items: Sequence[type[BaseModel]] = ()) -> str:
    """The example that the field brings along, or of a list an item's with what it must have."""
    examples = [example for field in fields for example in field.examples or ()]
    examples += [[needed] for item in items if (needed := _needed(item))]
    return f", for example {path}={on_one_line(examples[0])}" if examples else ""


def _needed(model: type[BaseModel]) -> dict[str, Any]:
    """Examples of the fields without which there are no such settings."""
    fields = model.model_fields.items()
    return {
        name: field.examples[0] for name, field in fields if field.is_required() and field.examples
    }


def on_one_line(value: Any) -> str:
    """A value as YAML, as on the command line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.strip().removesuffix("...").strip()


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All settings models inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)

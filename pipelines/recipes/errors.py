"""Formats pydantic's errors about a recipe as lines that name the field, the value and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.recipes.overrides import did_you_mean, nearest

_LONGEST_VALUE = 90
_Location = tuple[int | str, ...]
_WRONG_TYPE = ("_type", "_parsing", "literal_error", "none_required")
"""How pydantic's error types for a value of the wrong type end."""
_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "another type of value",
}


def describe(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> list[str]:
    """One line for each error: `stages.distill.steps = 0: must be greater than or equal to 1`."""
    faults = _without_branches(error.errors(include_url=False), model, data)
    return [_line(fault, model, data) for fault in faults if not _follows(fault, faults)]


def _follows(fault: ErrorDetails, faults: list[ErrorDetails]) -> bool:
    """Whether a list only counts as too short because its items have errors."""
    deeper = (other["loc"][: len(fault["loc"])] for other in faults if other is not fault)
    return fault["type"] == "too_short" and fault["loc"] in deeper


def _without_branches(
    faults: list[ErrorDetails], model: type[BaseModel], data: Mapping[str, Any]
) -> list[ErrorDetails]:
    """Of the errors in each branch of an untagged union, those where the type of the value fits, or
    one error for the union if it fits no branch."""
    kept: list[ErrorDetails] = []
    unions: dict[_Location, list[ErrorDetails]] = {}
    for fault in faults:
        location = fault["loc"]
        at = _branch_at(location, model, data)
        if at is None:
            kept.append(fault)
        else:
            moved = cast(ErrorDetails, {**fault, "loc": location[:at] + location[at + 1 :]})
            unions.setdefault(location[:at], []).append(moved)
    for location, branches in unions.items():
        fitting = [
            fault
            for fault in branches
            if fault["loc"] != location or not fault["type"].endswith(_WRONG_TYPE)
        ]
        choices = " or ".join(_type_words(_annotation_at(model, location)))
        no_branch = {**branches[0], "type": "no_branch", "msg": f"must be {choices}"}
        kept += fitting or [cast(ErrorDetails, no_branch)]
    return kept


def _branch_at(location: _Location, model: type[BaseModel], data: Any) -> int | None:
    """Index of pydantic's name for a branch of an untagged union, which is no part of the data."""
    for index, part in enumerate(location):
        if isinstance(data, Mapping):
            is_tag = part not in data and data.get("kind") == part
            if not is_tag and part not in data and part not in _fields_at(model, location[:index]):
                return index
            data = data if is_tag else data.get(part)
        elif isinstance(part, str):
            return index
        else:
            data = data[part] if isinstance(data, list | tuple) and part < len(data) else None
    return None


def _annotation_at(model: type[BaseModel], location: _Location) -> Any:
    for candidate in _models_at(model, location[:-1]):
        if location[-1] in candidate.model_fields:
            return candidate.model_fields[str(location[-1])].annotation
    return Any


def _type_words(annotation: Any) -> Iterator[str]:
    """Types of a union as a person writes them: `a whole number`, `'auto'`, `{min, max}`."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for argument in arguments:
            yield from _type_words(argument)
    elif origin is Annotated:
        yield from _type_words(arguments[0])
    elif origin is Literal:
        yield from map(repr, arguments)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield f"{{{', '.join(annotation.model_fields)}}}"
    else:
        yield _TYPE_WORDS.get(annotation, "a list")


def _line(fault: ErrorDetails, model: type[BaseModel], data: Mapping[str, Any]) -> str:
    location = fault["loc"]
    path = _path(location, data) or "recipe"
    kind = fault["type"]
    if kind == "missing":
        return f"{path}: must be given{_example(path, model, location)}"
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"{path} = {_value(fault)}: unknown key; {nearest(location[-1], known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_line(fault, path)
    if kind == "literal_error":
        choices = fault["ctx"]["expected"]
        hint = did_you_mean(fault["input"], _names(choices))
        return f"{path} = {_value(fault)}: choose {choices}{hint}"
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
    text = repr(fault["input"])
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _example(path: str, model: type[BaseModel], location: _Location) -> str:
    """The example that the missing field brings along, as on the command line."""
    *outer, name = location
    fields = [one.model_fields.get(str(name)) for one in _models_at(model, tuple(outer))]
    examples = [example for field in fields if field for example in field.examples or ()]
    if not examples:
        return ""
    text = yaml.safe_dump(examples[0], default_flow_style=True, sort_keys=False, width=1000)
    return f", for example {path}={text.strip().removesuffix('...').strip()}"


def _path(location: _Location, data: Any) -> str:
    """The location as the user writes it: stages by name, without the tags that pydantic adds."""
    parts: list[str] = []
    for part in location:
        if isinstance(data, Mapping):
            if part not in data and data.get("kind") == part:
                continue
            parts.append(str(part))
            data = data.get(part)
        elif isinstance(part, int) and isinstance(data, list | tuple) and part < len(data):
            data = data[part]
            named = isinstance(data, Mapping) and isinstance(data.get("name"), str)
            parts.append(data["name"] if named else str(part))
        else:
            parts.append(str(part))
    return ".".join(parts)


def _fields_at(model: type[BaseModel], location: _Location) -> list[str]:
    """Names of the fields at `location`."""
    candidates = _models_at(model, location)
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_at(model: type[BaseModel], location: _Location) -> list[type[BaseModel]]:
    """Models that may be at `location`; tags choose among the models of a union."""
    candidates = [model]
    for part in location:
        if isinstance(part, int):
            continue
        deeper = [
            inner
            for candidate in candidates
            if part in candidate.model_fields
            for inner in models_in(candidate.model_fields[part].annotation)
        ]
        candidates = deeper or [one for one in candidates if part in _kinds(one)]
    return candidates


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All settings models inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)

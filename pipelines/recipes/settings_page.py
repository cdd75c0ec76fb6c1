"""Writes the reference of all settings from their models.

python -m pipelines.recipes.settings_page > docs/settings.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from datagen.records import Group, group_of
from pipelines.recipes.errors import models_in, on_one_line
from pipelines.recipes.full_recipe import SECTION_MODELS

HEAD = """# Settings

Written by `python -m pipelines.recipes.settings_page > docs/settings.md` from the settings models;
do not edit.

A recipe file has some of these sections: `dataset`, `training`, `evaluation` and `benchmark`.
`flowmapsr dataset build RECIPE`, `flowmapsr train RECIPE` and `flowmapsr benchmark RECIPE` read one
each, and on the command line its settings are named without it: `workers=2`,
`stages.distill.steps=200`. What has the type *settings*
has a table further down. The last column says what a setting decides:

- *content*: the result. It is part of the digest of a dataset or a run and stays as it is.
- *correctable*: the result, but it may be changed until its stage is finished. More `steps` make a
  finished stage an unfinished one.
- *execution*: where and how it runs and how it is watched. It may always be changed.
"""
_TYPES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "anything",
}
_BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
_TWO_63 = 2**63


def page() -> str:
    """`docs/settings.md`."""
    parts = [HEAD]
    shown: set[type[BaseModel]] = set()
    for section, model in SECTION_MODELS.items():
        parts += _sections(section, model, Group.CONTENT, shown, level=2)
    return "\n".join(parts)


def _sections(
    path: str, model: type[BaseModel], outer: Group, shown: set[type[BaseModel]], *, level: int = 3
) -> Iterator[str]:
    """A table of the model's settings, then one of each model inside it that was not shown yet."""
    shown.add(model)
    kind = model.model_fields.get("kind")
    choice = f" with `kind: {'` or `'.join(get_args(kind.annotation))}`" if kind else ""
    yield f"{'#' * level} `{path}`{choice}\n\n{' '.join((model.__doc__ or '').split())}\n"
    fields = {name: field for name, field in model.model_fields.items() if name != "kind"}
    groups = {name: decides(field, inside=outer) for name, field in fields.items()}
    if fields:
        yield "| setting | type | default | meaning | decides |\n|---|---|---|---|---|"
        yield "\n".join(_row(name, fields[name], groups[name]) for name in fields) + "\n"
    for name, field in fields.items():
        inner = f"{path}.{name}" + (".NAME" if name == "stages" else "")
        for deeper in models_in(field.annotation):
            if deeper not in shown:
                yield from _sections(inner, deeper, groups[name], shown)


def decides(field: FieldInfo, *, inside: Group) -> Group:
    """What a field of settings that themselves are `inside` a group decides."""
    return group_of(field) if inside is Group.CONTENT else inside


def meaning(field: FieldInfo) -> str:
    """What is written below a field, on one line."""
    return " ".join((field.description or "").split())


def _row(name: str, field: FieldInfo, group: Group) -> str:
    words = type_words(field.annotation, field.metadata)
    cells = (f"`{name}`", words, _default(field), meaning(field))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, group.value)) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    first = field.default[:1] if isinstance(field.default, tuple) else (field.default,)
    if any(isinstance(item, BaseModel) for item in first):
        kind = getattr(field.default, "kind", None)
        return f"`{{kind: {kind}}}`" if kind else ""
    return f"`{on_one_line(to_jsonable_python(field.default))}`"


def type_words(annotation: Any, marks: list[Any]) -> str:
    """The type as a person reads it, with its bounds: `integer, ≥ 1 or null`."""
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        inner = [one for mark in arguments[1:] for one in getattr(mark, "metadata", [mark])]
        return type_words(arguments[0], [*inner, *marks])
    if origin in (Union, UnionType):
        words = [type_words(one, [] if one is NoneType else marks) for one in arguments]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(type_words(argument, []) for argument in arguments)}]"
    if origin is tuple:
        return f"list of {type_words(arguments[0], [])}"
    if origin is dict:
        return f"mapping to {type_words(arguments[1], [])}"
    name = _TYPES.get(annotation, "settings")
    return ", ".join([name, *(bound for mark in marks for bound in _bounds(mark))])


def _bounds(mark: Any) -> Iterator[str]:
    if isinstance(mark, MultipleOf):
        yield f"multiple of {mark.multiple_of}"
    elif type(mark) in _BOUNDS:
        sign, attribute = _BOUNDS[type(mark)]
        limit = getattr(mark, attribute)
        yield f"{sign} {'2^63' if limit == _TWO_63 else format(limit, '.4g')}"


if __name__ == "__main__":
    sys.stdout.write(page())

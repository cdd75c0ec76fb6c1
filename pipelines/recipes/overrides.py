"""Lays one tree of recipe values over another: the one rule behind `extends` and `a.b=value`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from datagen.errors import FlowmapsrError, first_line
from training.settings.yaml_text import parse_yaml

LONGEST_VALUE = 90
Overrides = Sequence[str] | Mapping[str, Any]
"""`["seed=7", ...]` as on the command line, or `{"seed": 7, ...}` from code."""


class RecipeError(FlowmapsrError):
    """A recipe or an argument that cannot be used; the command line ends with exit code 2."""

    exit_code = 2


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint for a wrong name: the closest known one where there is one, else all of them."""
    names = list(known)
    hint = did_you_mean(name, names)
    return hint.removeprefix("; ") or f"choose from: {', '.join(names)}"


def merged(base: Any, patch: Any, *, path: str = "") -> Any:
    """`patch` laid over `base`; neither is changed.

    Mappings merge key by key, a mapping over a list changes items by `name` or index, and all else
    replaces. So does a mapping of another `kind`, which must not inherit the other's fields.
    """
    if isinstance(patch, Mapping) and isinstance(base, Mapping):
        if "kind" in base and base["kind"] != patch.get("kind", base["kind"]):
            return dict(patch)
        added = {
            key: merged(base[key], value, path=_join(path, key)) if key in base else value
            for key, value in patch.items()
        }
        return {**base, **added}
    if isinstance(patch, Mapping) and isinstance(base, list):
        items = list(base)
        for key, value in patch.items():
            index = _index_in(items, key, path=path)
            items[index] = merged(items[index], value, path=_join(path, key))
        return items
    return patch


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1"]` as `{"a.b": 1}`: the values are YAML."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(
                f"{argument!r} is not a setting; write name=value, for example workers=2 or "
                f"stages.distill.steps=500"
            )
        if key in values:
            raise RecipeError(f"{key} is given twice on the command line; give it once")
        try:
            values[key] = parse_yaml(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or first_line(error)
            raise RecipeError(
                f"{key} = {shortened(text)}: not a YAML value ({problem}); quote text that holds "
                f"brackets, commas, '#' or ': ', for example {key}='\"...\"'"
            ) from error
    return values


def shortened(value: object) -> str:
    """A value as Python writes it, not longer than a line."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def with_overrides(base: Any, overrides: Overrides) -> Any:
    """`base` with each dotted key of `overrides` set, as one patch: their order does not matter."""
    values = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    tree: Any = {}
    for key, value in values.items():
        patch: Any = value
        for part in reversed(key.split(".")):
            patch = {part: patch}
        tree = merged(tree, patch)
    return merged(base, tree)


def _index_in(items: list[Any], key: object, *, path: str) -> int:
    names = [item.get("name") if isinstance(item, Mapping) else None for item in items]
    if key in names:
        return names.index(key)
    if str(key).isdecimal() and int(str(key)) < len(items):
        return int(str(key))
    known = [name for name in names if name is not None] or [str(i) for i in range(len(items))]
    raise RecipeError(
        f"{_join(path, key)}: {path} has no item {str(key)!r}, only {', '.join(known) or 'none'}"
        f"{did_you_mean(key, known)}"
    )


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)

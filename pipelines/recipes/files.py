"""Reads recipe files by name or path, with `extends`, down to one section's tree of values.

Knows no settings models; whether the values make sense is checked in `recipe.py`.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, get_args

import yaml

from pipelines.recipes.full_recipe import Section
from pipelines.recipes.overrides import RecipeError, merged, nearest

BUNDLED = Path(__file__).parent
SECTIONS: tuple[Section, ...] = get_args(Section)
Layer = tuple[Path, dict[str, Any]]


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def read_section(name: str, section: Section) -> dict[str, Any]:
    """The values of `section` in recipe `name`, laid over those it extends.

    Raises:
        RecipeError: no such recipe, text that is not YAML, a loop of `extends`, or no such section.
    """
    path = _find(name, beside=Path.cwd())
    layers = _layers(path, section, seen=())
    if not layers:
        held = ", ".join(key for key in SECTIONS if _layers(path, key, seen=()))
        raise RecipeError(f"{path}: this recipe has no {section!r} section; it has: {held}")
    values: dict[str, Any] = {}
    for file, layer in layers:
        try:
            values = merged(values, layer)
        except RecipeError as error:
            raise RecipeError(f"{file}: {error}") from error
    return values


def read_full_output(name: str) -> dict[str, Any]:
    """`{"output": ...}` if the full recipe, or one it extends, sets it; else an empty mapping."""
    path = _find(name, beside=Path.cwd())
    content = _parse(path)
    if not _is_sectioned(content) and "extends" not in content:
        raise RecipeError(
            f"{path}: not a full recipe; it needs the sections {', '.join(SECTIONS)}, or 'extends'"
        )
    seen = {path}
    while "output" not in content and "extends" in content:
        path = _base_path(content["extends"], path)
        if path in seen:
            break  # read_section reports the loop
        seen.add(path)
        content = _parse(path)
    return {"output": content["output"]} if "output" in content else {}


def _find(name: str, *, beside: Path) -> Path:
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        path = BUNDLED / f"{name}.yaml"
        if path.is_file():
            return path
        raise RecipeError(
            f"there is no recipe {name!r}; {nearest(name, bundled_recipes())} "
            f"(a recipe of your own is given by its path, such as ./{name}.yaml)"
        )
    path = beside / Path(name).expanduser()
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise RecipeError(
            f"recipe file {path} {found}; give a YAML file or one of the recipes that "
            f"come with flowmapsr: {', '.join(bundled_recipes())}"
        )
    return path.resolve()


def _layers(path: Path, section: Section, *, seen: tuple[Path, ...]) -> list[Layer]:
    """What the recipe and those it extends say about `section`, base first, each with its file."""
    if path in seen:
        chain = " -> ".join(str(file) for file in (*seen, path))
        raise RecipeError(f"recipes extend each other in a loop: {chain}; remove one 'extends'")
    content = _parse(path)
    seen = (*seen, path)
    if not _is_sectioned(content):
        return _own_layers(content, path, section, seen=seen)
    _check_top_keys(content, path)
    layers: list[Layer] = []
    if "extends" in content:
        base_path = _base_path(content["extends"], path)
        layers += _layers(base_path, section, seen=seen)
        if not _is_full(base_path):
            raise RecipeError(
                f"{path}: extends {content['extends']!r}, which is one section and not a full "
                f"recipe; put this 'extends' inside the section it belongs to"
            )
    if section in content:
        own = _mapping(content[section], path, what=section)
        layers += _own_layers(own, path, section, seen=seen)
    return layers


def _own_layers(
    content: dict[str, Any], path: Path, section: Section, *, seen: tuple[Path, ...]
) -> list[Layer]:
    """One section's own values, after those of the `extends` that stands beside them."""
    own = {key: value for key, value in content.items() if key != "extends"}
    if "extends" not in content:
        return [(path, own)]
    return [*_layers(_base_path(content["extends"], path), section, seen=seen), (path, own)]


def _is_full(path: Path) -> bool:
    """Whether this recipe has sections, itself or by what it extends (known to hold no loop)."""
    content = _parse(path)
    if _is_sectioned(content) or set(content) != {"extends"}:
        return _is_sectioned(content)
    return _is_full(_base_path(content["extends"], path))


def _base_path(extends: Any, path: Path) -> Path:
    if not isinstance(extends, str):
        raise RecipeError(f"{path}: extends = {extends!r}: give the name or path of one recipe")
    try:
        return _find(extends, beside=path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: extends = {extends!r}: {error}") from error


def _is_sectioned(content: dict[str, Any]) -> bool:
    return any(section in content for section in SECTIONS)


def _check_top_keys(content: dict[str, Any], path: Path) -> None:
    known = ("extends", "output", *SECTIONS)
    for key in content:
        if key not in known:
            raise RecipeError(
                f"{path}: {key} = {content[key]!r}: unknown key beside the sections of a full "
                f"recipe; {nearest(key, known)}"
            )


def _mapping(value: Any, path: Path, *, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: {what} holds {value!r}; it needs 'key: value' lines")
    return value


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}, line {line}: {error.problem or 'not YAML'}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML text: {error}") from error
    return _mapping(content, path, what="the recipe")


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that stands twice: YAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *anchor`, over which the keys beside it go
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _at(key_node, "a key must be text or a number")
            if key in seen:
                raise _at(key_node, f"the key {key!r} stands twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

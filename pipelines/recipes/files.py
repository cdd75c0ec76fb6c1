"""Reads a recipe by name or path, laid over the one it extends, as a tree of its sections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from pipelines.recipes.benchmark_names import BENCHMARKS, bundled_benchmarks
from pipelines.recipes.full_recipe import Section
from pipelines.recipes.overrides import RecipeError, did_you_mean, merged, nearest
from training.settings.yaml_text import parse_yaml

BUNDLED = Path(__file__).parent
SECTIONS: tuple[Section, ...] = get_args(Section)
TOP_KEYS = ("extends", "output", *SECTIONS)


def bundled_recipes() -> list[str]:
    """Names of the recipes of datasets and trainings that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """Sections and `output` of recipe `name`, laid over those of the recipe it extends.

    Raises:
        RecipeError: no such recipe, not YAML, a loop of `extends`, or an unknown top-level key.
    """
    return _read(_find(name, beside=Path.cwd()), seen=())


def purpose(name: str) -> str:
    """What a recipe is for: its first line, if that is a comment; else nothing.

    Raises:
        RecipeError: there is no such recipe.
    """
    first = _find(name, beside=Path.cwd()).read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def _find(name: str, *, beside: Path) -> Path:
    if "/" not in name and not name.endswith((".yaml", ".yml", ".json")):
        for folder in (BUNDLED, BENCHMARKS):
            if (path := folder / f"{name}.yaml").is_file():
                return path
        known = [*bundled_recipes(), *bundled_benchmarks()]
        raise RecipeError(
            f"there is no recipe {name!r}{did_you_mean(name, known) or '.'} Those that come with "
            f"flowmapsr: {', '.join(known)} (give your own by its path, such as ./{name}.yaml)"
        )
    in_folder = BUNDLED / f"{name}.yaml"  # such as elir-ablations/pixels
    path = in_folder if in_folder.is_file() else beside / os.path.expanduser(name)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise RecipeError(
            f"recipe file {path} {found}; give a YAML file or one of the recipes that "
            f"come with flowmapsr: {', '.join(bundled_recipes())}"
        )
    return path.resolve()


def _read(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe laid over the one it extends; `seen` are those that extend it."""
    seen = (*seen, path)
    if path in seen[:-1]:
        chain = " -> ".join(map(str, seen))
        raise RecipeError(f"recipes extend each other in a loop: {chain}; remove one 'extends'")
    content = _parse(path)
    extends = content.pop("extends", None)
    if extends is None:
        return content
    if not isinstance(extends, str):
        raise RecipeError(f"{path}: extends = {extends!r}: give the name or path of one recipe")
    try:
        base_path = _find(extends, beside=path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: extends = {extends!r}: {error}") from error
    base = _read(base_path, seen=seen)
    try:
        return cast(dict[str, Any], merged(base, content))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _mapping(value: Any, path: Path, *, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: {what} is {value!r}; it needs 'key: value' lines")
    return value


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}, line {line}: {error.problem or 'not YAML'}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML text: {error}") from error
    recipe = _mapping(content, path, what="the recipe")
    if "stages" in recipe:  # a training run's own recipe
        recipe = {"training": recipe}
    elif "models" in recipe:  # as `flowmapsr benchmark --dry-run` prints one
        recipe = {"benchmark": recipe}
    for key, value in recipe.items():
        if key not in TOP_KEYS:
            raise RecipeError(
                f"{path}: unknown key {key!r}; {nearest(key, TOP_KEYS)} (settings go below "
                "'dataset:', 'training:', 'evaluation:' or 'benchmark:')"
            )
        if key in SECTIONS:
            recipe[key] = _mapping(value, path, what=key)
    return recipe

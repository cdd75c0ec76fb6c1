"""Turns a recipe's name or file, a section and `a.b=value` settings into a checked settings model.

Validation boundary: everything past this point is trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from datagen.pair_settings import PairSettings
from datagen.records import FROM_USER, absolute
from datagen.settings import DatasetRecipe
from pipelines.recipes.errors import describe
from pipelines.recipes.files import SECTIONS, read_recipe
from pipelines.recipes.full_recipe import (
    FULL_SECTIONS,
    SECTION_MODELS,
    AnyRecipe,
    FullRecipe,
    Section,
)
from pipelines.recipes.overrides import Overrides, RecipeError, merged, with_overrides
from pipelines.terminal.text import counted
from training.evaluation.other_networks.extras import require_extras
from training.run_dir.paths import run_of
from training.settings.benchmark import BenchmarkModel, BenchmarkRecipe
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe

STARTING_RECIPES = {
    "dct8": "demo",
    "dct4": "flowmapsr-tiny",
    "autoencoder_kl": "flowmapsr-small",
}
"""Bundled recipe to train first on latents of a kind of codec."""
Model = TypeVar("Model", bound=BaseModel)


def dataset_recipe(name: str, overrides: Overrides = ()) -> DatasetRecipe:
    """The checked recipe of `flowmapsr dataset build`. Raises `RecipeError`."""
    values = _section(read_recipe(name), "dataset", name)
    return validated(DatasetRecipe, with_overrides(values, overrides), title=name)


def training_recipe(name: str, overrides: Overrides = ()) -> TrainingRecipe:
    """The checked recipe of `flowmapsr train`. Raises `RecipeError`.

    The recipe in a run's folder, which may have been moved or copied, trains that folder.
    """
    values, run = _section(read_recipe(name), "training", name), run_of(Path(name))
    if run is not None:
        values["output"] = str(run)
    return validated(TrainingRecipe, with_overrides(values, overrides), title=name)


def _section(recipe: Mapping[str, Any], section: Section, name: str) -> dict[str, Any]:
    """A section over the defaults of its model, so that a setting inside one can change alone."""
    if section not in recipe:
        held = ", ".join(key for key in SECTIONS if key in recipe) or "none"
        raise RecipeError(f"recipe {name!r} has no {section!r} section; its sections: {held}")
    model = SECTION_MODELS[section]
    defaults = {
        field: to_jsonable_python(info.default)
        for field, info in model.model_fields.items()
        if not info.is_required()
    }
    values: dict[str, Any] = merged(defaults, recipe[section])
    return values


def unfinished_section(name: str, section: Section) -> tuple[BaseModel, frozenset[str]]:
    """A section with examples for what the recipe leaves to the command line; the names of those.

    Raises `RecipeError`.
    """
    values = _section(read_recipe(name), section, name)
    model = SECTION_MODELS[section]
    examples = {
        key: field.examples[0]
        for key, field in model.model_fields.items()
        if field.is_required() and field.examples and key not in values
    }
    return validated(model, {**values, **examples}, title=name), frozenset(examples)


def full_recipe(name: str, overrides: Overrides = ()) -> FullRecipe:
    """The checked recipe of a whole run; overrides start with a section. Raises `RecipeError`."""
    values = read_recipe(name)
    for section in FULL_SECTIONS:
        values[section] = _section(values, section, name)
    return validated(FullRecipe, with_overrides(values, overrides), title=name)


def benchmark_recipe(name: str, overrides: Overrides = ()) -> BenchmarkRecipe:
    """The checked recipe of `flowmapsr benchmark`. Raises `RecipeError`."""
    values = _section(read_recipe(name), "benchmark", name)
    return validated(BenchmarkRecipe, with_overrides(values, overrides), title=name)


RECIPE_OF_FLOW: dict[str, Callable[..., AnyRecipe]] = {
    "dataset": dataset_recipe,
    "training": training_recipe,
    "full": full_recipe,
    "benchmark": benchmark_recipe,
}
"""Reads the recipe that a flow takes."""


def fitting_recipe(codec: str | None, *, preferred: str | None = None) -> str | None:
    """A recipe to train with on latents of this codec: `preferred` if it has a training section;
    None for a dataset without latents, but for one that `preferred` trains on."""
    values = {} if preferred is None else read_recipe(preferred)
    without_latents = values.get("dataset", {}).get("latents") == []
    if "training" in values and (codec is not None or without_latents):
        return preferred
    if codec is None:
        return None
    # Small autoencoders have the latents of those they were distilled from.
    return STARTING_RECIPES.get(codec, STARTING_RECIPES["autoencoder_kl"])


def evaluation_settings(**options: Any) -> EvaluationSettings:
    """Validated options of `flowmapsr evaluate`. Raises `RecipeError`."""
    return validated(EvaluationSettings, options, title="evaluate")


def pair_values(folders: tuple[str, str] | None, match: str | None) -> dict[str, str] | None:
    """`HQ=FOLDER LQ=FOLDER`, in any order, and suffixes or a table, as `PairSettings`.

    Raises:
        RecipeError: they are not these.
    """
    if folders is None:
        if match is not None:
            raise RecipeError(f"--match {match}: say how pairs match together with --pairs")
        return None
    given = {name.lower(): folder for name, _, folder in (one.partition("=") for one in folders)}
    if given.keys() != {"hq", "lq"}:
        raise RecipeError(f"--pairs {' '.join(folders)}: write --pairs HQ=FOLDER LQ=FOLDER")
    return {**given, **_matching(match)}


def _matching(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    if text.endswith(".csv"):
        return {"match": "csv", "csv": text}
    hq, comma, lq = text.partition(",")
    if not comma:
        raise RecipeError(f"--match {text}: write two ends of names as _HR,_LR4, or a .csv table")
    return {"match": "suffix", "hq_suffix": hq, "lq_suffix": lq}


def benchmark_models(words: Sequence[str]) -> tuple[BenchmarkModel, ...]:
    """Folders, or `NAME=FOLDER`, of the models of `flowmapsr evaluate`. Raises `RecipeError`."""
    return tuple(
        validated(BenchmarkModel, {"name": name, "folder": folder}, title="evaluate")
        for name, folder in map(_named, words)
    )


def _named(word: str) -> tuple[str | None, str]:
    name, given, folder = word.partition("=")
    return (name, folder) if given and "/" not in name else (None, word)


def baseline_values(text: str) -> dict[str, str]:
    """`lanczos`, `NAME=FOLDER` of pictures, `spandrel:NAME=FILE` or `ncnn:NAME=FOLDER`, as a
    baseline of `EvaluationSettings`."""
    named, given, place = text.partition("=")
    if not given:
        return {"kind": named}
    kind, typed, name = named.partition(":")
    if not typed:
        return {"kind": "pictures", "name": named, "folder": place}
    return {"kind": kind, "name": name, "file" if kind == "spandrel" else "folder": place}


def validated(model: type[Model], values: Mapping[str, Any], *, title: str) -> Model:
    """`values` as a checked `model`.

    Raises:
        RecipeError: lists every error with its field, the value and the fix.
    """
    try:
        return model.model_validate(values, context=FROM_USER)
    except ValidationError as error:
        lines = describe(error, model, values)
        count = counted(len(lines), "error")
        raise RecipeError("\n  ".join([f"recipe {title!r} has {count}:", *lines])) from error


def absolute_location(location: str, *, field: str) -> str:
    """A path of the command line made absolute; `field` names it in the error."""
    try:
        return absolute(location)
    except ValueError as error:
        raise RecipeError(f"{field} = {location!r}: {error}") from error


def at_home(location: str, *, field: str) -> str:
    """A path of the command line with its `~`, which a shell leaves in `--output=~/x`."""
    return absolute_location(location, field=field) if location.startswith("~") else location


def require_sources(recipe: DatasetRecipe, *, section: Section | None = None) -> None:
    """Checks local sources before any server is started; `section` where the recipe has several.

    Raises:
        RecipeError: one does not exist.
    """
    prefix = f"{section}." if section else ""
    for source in recipe.sources:
        _require(source, f"{prefix}sources", "give a folder or file of photos")
    for number, pairs in enumerate(recipe.pairs):
        _require_pairs(pairs, f"{prefix}pairs.{number}")


def _require_pairs(pairs: PairSettings, field: str) -> None:
    _require(pairs.hq, f"{field}.hq", "give a folder of photos")
    _require(pairs.lq, f"{field}.lq", "give a folder of photos")
    if pairs.csv is not None:
        _require(pairs.csv, f"{field}.csv", "give the table of the pairs")


def require_photos(settings: EvaluationSettings, *, section: str = "evaluation.") -> None:
    """Checks the held-out photos, and those of baselines, before anything is made; `section` is
    what the names of settings begin with.

    Raises:
        RecipeError: there are none.
        FlowmapsrError: a package that a baseline needs is not installed.
    """
    if settings.photos is not None:
        _require(settings.photos, f"{section}photos", "give a folder of photos")
    if settings.pairs is not None:
        _require_pairs(settings.pairs, f"{section}pairs")
    if settings.no_reference is not None:
        _require(settings.no_reference, f"{section}no_reference", "give a folder of pictures")
    for number, one in enumerate(settings.baselines):
        field = f"{section}baselines.{number}"
        match one.kind:
            case "pictures":
                _require(one.folder, f"{field}.folder", "give the folder of its pictures")
            case "ncnn":
                _require(one.folder, f"{field}.folder", "give the folder of its .param and .bin")
            case "spandrel":
                _require(one.file, f"{field}.file", "give its weights as safetensors")
    require_extras(settings.baselines)


def _require(location: str, field: str, fix: str) -> None:
    if "://" not in location and not os.path.exists(location):
        raise RecipeError(f"{field}: {location} does not exist; {fix}")

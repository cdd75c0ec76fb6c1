"""Turns a recipe's name or file, a section and `a.b=value` settings into a checked settings model.

Validation boundary: everything past this point is trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from datagen.settings import DatasetRecipe
from pipelines.recipes.errors import describe
from pipelines.recipes.files import SECTIONS, read_recipe
from pipelines.recipes.full_recipe import AnyRecipe, FullRecipe, Section
from pipelines.recipes.overrides import RecipeError, merged, parse_overrides, with_overrides
from pipelines.terminal.text import counted
from training.settings.evaluation import EvaluationSettings
from training.settings.initial_weights import is_local_path
from training.settings.model import is_folder
from training.settings.recipe import TrainingRecipe

Overrides = Sequence[str] | Mapping[str, Any]
"""`["seed=7", ...]` as on the command line, or `{"seed": 7, ...}` from code."""

MODELS: dict[Section, type[BaseModel]] = {
    "dataset": DatasetRecipe,
    "training": TrainingRecipe,
    "evaluation": EvaluationSettings,
}
STARTING_RECIPES = {"dct8": "demo", "autoencoder_kl": "flowmapsr-small"}
"""Bundled recipe to train first on latents of a kind of codec."""
PATHS: dict[Section, tuple[str, ...]] = {
    "dataset": ("sources", "output"),
    "training": ("manifest", "output"),
    "evaluation": ("photos",),
}
Model = TypeVar("Model", bound=BaseModel)


def load_recipe(name: str, section: Section, overrides: Overrides = ()) -> dict[str, Any]:
    """The section's values from the file, the recipes it extends and `overrides`, not yet checked.

    The models' defaults are the base, so that a setting inside one can be changed alone.
    """
    values = with_overrides(_section(read_recipe(name), section, name), _as_mapping(overrides))
    return _prepared(values, section)


def _section(recipe: Mapping[str, Any], section: Section, name: str) -> dict[str, Any]:
    if section not in recipe:
        held = ", ".join(key for key in SECTIONS if key in recipe) or "none"
        raise RecipeError(f"recipe {name!r} has no {section!r} section; its sections: {held}")
    values: dict[str, Any] = merged(_defaults(MODELS[section]), recipe[section])
    return values


def dataset_recipe(name: str, overrides: Overrides = ()) -> DatasetRecipe:
    """The checked recipe of `flowmapsr dataset build`. Raises `RecipeError`."""
    return validated(DatasetRecipe, load_recipe(name, "dataset", overrides), title=name)


def training_recipe(name: str, overrides: Overrides = ()) -> TrainingRecipe:
    """The checked recipe of `flowmapsr train`. Raises `RecipeError`."""
    return validated(TrainingRecipe, load_recipe(name, "training", overrides), title=name)


def full_recipe(name: str, overrides: Overrides = ()) -> FullRecipe:
    """The checked recipe of a whole run; overrides start with a section's name.

    Raises `RecipeError`.
    """
    values = read_recipe(name)
    for section in SECTIONS:
        values[section] = _section(values, section, name)
    values = with_overrides(values, _as_mapping(overrides))
    for section in SECTIONS:
        if isinstance(values[section], dict):
            values[section] = _prepared(values[section], section)
    if isinstance(values.get("output"), str):
        values["output"] = absolute_location(values["output"], field="output")
    return validated(FullRecipe, values, title=name)


RECIPE_OF_FLOW: dict[str, Callable[..., AnyRecipe]] = {
    "dataset": dataset_recipe,
    "training": training_recipe,
    "full": full_recipe,
}
"""Reads the recipe that a flow takes."""


def fitting_recipe(codec: str, *, preferred: str | None = None) -> str:
    """A recipe to train with on latents of this kind of codec.

    Args:
        preferred: the recipe of the dataset, which is taken if it has a training section.
    """
    if preferred is not None and "training" in read_recipe(preferred):
        return preferred
    return STARTING_RECIPES[codec]


def evaluation_settings(
    photos: str,
    *,
    scales: Sequence[str],
    steps: Sequence[str],
    lora_scale: float | None = None,
    guidance: float | None = None,
) -> EvaluationSettings:
    """Validated options of `flowmapsr evaluate`. Raises `RecipeError`."""
    values = {
        "photos": absolute_location(photos, field="photos"),
        "scales": [scale.strip() for scale in scales],
        "steps": [count.strip() for count in steps],
        "lora_scale": lora_scale,
        "guidance": guidance,
    }
    return validated(EvaluationSettings, values, title="evaluate")


def validated(model: type[Model], values: Mapping[str, Any], *, title: str) -> Model:
    """`values` as a checked `model`.

    Raises:
        RecipeError: lists every error with its field, the value and the fix.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = describe(error, model, values)
        count = counted(len(lines), "error")
        raise RecipeError("\n  ".join([f"recipe {title!r} has {count}:", *lines])) from error


def absolute_location(location: str, *, field: str) -> str:
    """A local path made absolute, as workers have other folders; `s3://` and the like stay."""
    if "://" in location or not location:
        return location
    path = os.path.expanduser(location)
    if path.startswith("~"):
        raise RecipeError(f"{field} = {location!r}: no such home folder; write the full path")
    return os.path.abspath(path)


def require_sources(recipe: DatasetRecipe) -> None:
    """Checks local sources before any server is started.

    Raises:
        RecipeError: one does not exist.
    """
    for source in recipe.sources:
        if "://" not in source and not os.path.exists(source):
            raise RecipeError(f"sources: {source} does not exist; give a folder or file of photos")


def _as_mapping(overrides: Overrides) -> Mapping[str, Any]:
    return overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    return {
        name: to_jsonable_python(field.default)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }


def _prepared(values: dict[str, Any], section: Section) -> dict[str, Any]:
    """One source may be written without brackets, and local paths are made absolute."""
    if section == "dataset" and isinstance(values.get("sources"), str):
        values = {**values, "sources": [values["sources"]]}
    values = _with_absolute(values, *PATHS[section])
    prompts, stages = values.get("prompts"), values.get("stages")
    if isinstance(prompts, dict) and is_folder(str(prompts.get("source", ""))):
        values["prompts"] = _with_absolute(prompts, "source")
    if isinstance(stages, list):
        values["stages"] = [_with_absolute_weights(stage) for stage in stages]
    return values


def _with_absolute(values: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {
        key: _absolute(value, field=key) if key in fields else value
        for key, value in values.items()
    }


def _with_absolute_weights(stage: Any) -> Any:
    source = stage.get("init_from") if isinstance(stage, dict) else None
    is_path = isinstance(source, str) and is_local_path(source)
    return _with_absolute(stage, "init_from") if is_path else stage


def _absolute(value: Any, *, field: str) -> Any:
    if isinstance(value, str):
        return absolute_location(value, field=field)
    if isinstance(value, list):
        return [_absolute(item, field=field) for item in value]
    return value  # of a wrong type, which the settings model reports

"""The recipes and their settings as a person looks them up: what each is for, and each value with
its type, its meaning and what it decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from datagen.records import FrozenModel, Group
from pipelines.recipes.benchmark_names import bundled_benchmarks
from pipelines.recipes.errors import models_in, on_one_line
from pipelines.recipes.files import (
    SECTIONS,
    bundled_recipes,
    purpose,
    read_recipe,
)
from pipelines.recipes.full_recipe import Section
from pipelines.recipes.load import unfinished_section
from pipelines.recipes.settings_page import decides, meaning, type_words


class RecipeSummary(FrozenModel):
    """A recipe in one line."""

    name: str
    purpose: str
    sections: tuple[Section, ...]


class Setting(FrozenModel):
    """A setting of a recipe."""

    section: Section
    name: str
    """As on the command line of its section: `stages.warmup.steps`."""
    value: Any
    """Null also where `given` is false."""
    default: Any
    """Null also where it has none: it is `required`."""
    required: bool
    given: bool
    """Whether it has a value; one without must be given on the command line."""
    type: str
    meaning: str
    decides: Literal["content", "correctable", "execution"]

    @property
    def stage(self) -> str | None:
        """The stage that it belongs to, if it does."""
        first, *rest = self.name.split(".")
        return rest[0] if first == "stages" else None

    @property
    def name_in_any_stage(self) -> str:
        """`stages.NAME.steps`, the same for every stage."""
        return ".".join(["stages", "NAME", *self.name.split(".")[2:]]) if self.stage else self.name

    @property
    def text(self) -> str:
        """The value, as on the command line."""
        return on_one_line(self.value) if self.given else "(must be given)"


def summary(name: str) -> RecipeSummary:
    """What a recipe is for, and its sections. Raises `RecipeError`."""
    values = read_recipe(name)
    sections = tuple(section for section in SECTIONS if section in values)
    return RecipeSummary(name=name, purpose=purpose(name), sections=sections)


def summaries() -> list[RecipeSummary]:
    """Of all recipes that come with the package."""
    return [summary(name) for name in [*bundled_recipes(), *bundled_benchmarks()]]


def settings_of(name: str) -> list[Setting]:
    """All settings of a recipe, section by section. Raises `RecipeError`."""
    found: list[Setting] = []
    for section in summary(name).sections:
        values, to_give = unfinished_section(name, section)
        found += [
            setting.model_copy(update={"given": False, "value": None})
            if setting.name.split(".")[0] in to_give
            else setting
            for setting in _settings(section, "", values, Group.CONTENT)
        ]
    return found


def _settings(section: Section, path: str, model: BaseModel, outer: Group) -> Iterator[Setting]:
    """The settings of a model and of those inside it; a list of settings other than the stages is
    one value."""
    for key, field in type(model).model_fields.items():
        value, name, group = getattr(model, key), f"{path}{key}", decides(field, inside=outer)
        if name == "stages":
            for stage in value:
                inner = f"stages.{stage.name}."
                found = _settings(section, inner, stage, group)
                yield from (setting for setting in found if setting.name != f"{inner}name")
        elif isinstance(value, BaseModel):
            if "kind" in type(value).model_fields:
                yield _kind(section, f"{name}.kind", value, field, group)
            yield from _settings(section, f"{name}.", value, group)
        elif key != "kind":
            yield Setting(
                section=section,
                name=name,
                value=_short(value),
                default=None if field.is_required() else _short(field.default),
                required=field.is_required(),
                given=True,
                type=type_words(field.annotation, field.metadata),
                meaning=meaning(field),
                decides=group.value,
            )


def _kind(section: Section, name: str, value: BaseModel, field: FieldInfo, group: Group) -> Setting:
    """The choice between settings of several kinds."""
    kinds = [
        kind
        for model in models_in(field.annotation)
        for kind in get_args(model.model_fields["kind"].annotation)
    ]
    return Setting(
        section=section,
        name=name,
        value=getattr(value, "kind", None),
        default=getattr(field.default, "kind", None),
        required=field.is_required(),
        given=True,
        type=" or ".join(f"`{kind}`" for kind in kinds),
        meaning=meaning(field),
        decides=group.value,
    )


def _short(value: Any) -> Any:
    """A value as JSON; settings inside it without what is at its default."""
    if isinstance(value, BaseModel):
        fields = (
            (key, getattr(value, key), field) for key, field in type(value).model_fields.items()
        )
        return {
            key: _short(inner)
            for key, inner, field in fields
            if key == "kind" or inner != field.default
        }
    if isinstance(value, tuple):
        return [_short(item) for item in value]
    return to_jsonable_python(value)

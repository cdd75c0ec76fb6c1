"""What `flowmapsr recipes` prints: the list of recipes, or one recipe's settings."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

from pipelines.recipes.catalog import RecipeSummary, Setting
from pipelines.recipes.errors import on_one_line
from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.text import command

NARROWEST, WIDEST = 40, 100
MADE_BY = {"dataset": ("dataset", "build"), "training": ("train",), "benchmark": ("benchmark",)}
"""The command of a section of a recipe."""


def recipes_listed(found: Sequence[RecipeSummary]) -> VerbResult:
    """A line for each recipe."""
    width = max(len(recipe.name) for recipe in found)
    lines = [
        f"{recipe.name:{width}}  {recipe.purpose} [{', '.join(recipe.sections)}]"
        for recipe in found
    ]
    lines.append(f"Next: {command('recipes', found[0].name)}")
    return VerbResult({"recipes": [recipe.model_dump(mode="json") for recipe in found]}, lines)


def recipe_described(recipe: RecipeSummary, settings: Sequence[Setting]) -> VerbResult:
    """All settings of a recipe, section by section; what the stages share is written once."""
    lines = [f"{recipe.name}: {recipe.purpose}" if recipe.purpose else recipe.name]
    for section in recipe.sections:
        lines += ["", section]
        for same in _by_name_in_any_stage([one for one in settings if one.section == section]):
            lines += _setting_lines(same, stages=_stages(settings))
    lines += [
        "",
        "A default is named where the value is another one. Content stays as it is from the",
        "first step on, correctable may be changed until its stage is finished (more steps make a",
        "finished stage an unfinished one), execution at every start.",
        *(["On the command line write a stage's name for NAME."] if _stages(settings) else []),
        f"Next: {_next_command(recipe, settings)}",
    ]
    result = {**recipe.model_dump(mode="json"), "settings": [one.model_dump() for one in settings]}
    return VerbResult(result, lines)


def _next_command(recipe: RecipeSummary, settings: Sequence[Setting]) -> str:
    section = next((one for one in recipe.sections if one in MADE_BY), None)
    if section is None:
        return command("recipes")
    to_give = [one for one in settings if one.section == section and not one.given]
    words = (
        f"{one.name}={f'[{one.name.upper()}]' if one.type.startswith('list') else one.name.upper()}"
        for one in to_give
    )
    return command(*MADE_BY[section], recipe.name, *words)


def _stages(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(one.stage for one in settings if one.stage is not None))


def _by_name_in_any_stage(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Each setting with those of the same name in other stages; what is inside one stays together,
    though the first stage may not have all of it."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.name_in_any_stage, []).append(setting)
    outer = {name: name.split(".")[: 3 if same[0].stage else 1] for name, same in groups.items()}
    order = list(outer.values())
    return [groups[name] for name in sorted(groups, key=lambda name: order.index(outer[name]))]


def _setting_lines(same: Sequence[Setting], *, stages: Sequence[str]) -> list[str]:
    """One setting, of one stage or of several: its name and value, then what it is."""
    first = same[0]
    where: dict[str, list[str]] = {}
    for setting in same:
        where.setdefault(setting.text, []).append(setting.stage or "")
    everywhere = first.stage is None or list(where.values()) == [list(stages)]
    values = where if everywhere else [f"{one} in {', '.join(in_)}" for one, in_ in where.items()]
    default = on_one_line(first.default)
    other = f", default {default}" if not first.required and list(where) != [default] else ""
    kind = f"{first.type.replace('`', '')}{other}; {first.decides}"
    return [
        *_wrapped(f"{first.name_in_any_stage} = {'; '.join(values)}", indent=2),
        *_wrapped(f"{first.meaning} ({kind})", indent=6),
    ]


def _wrapped(text: str, *, indent: int) -> list[str]:
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDEST
    return textwrap.wrap(
        text,
        width=min(max(terminal, NARROWEST), WIDEST),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent if indent > 2 else 6),
        break_long_words=False,
        break_on_hyphens=False,
    )

"""Every command that the README and the docs print works as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from pipelines.cli import app
from pipelines.recipes.load import STARTING_RECIPES, dataset_recipe
from tests.pipelines.conftest import Ended
from training.settings.recipe import TrainingRecipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
SHELL = {">", ">>", "<", "|", "||", "&&", "&", ";"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

Invoke = Callable[..., Ended]


def blocks(text: str) -> Iterator[str]:
    """Code blocks of a page, with continued lines joined."""
    for match in BLOCK.finditer(text):
        yield match[2].replace("\\\n", " ")


def commands(text: str) -> Iterator[list[str]]:
    """Words after `flowmapsr` of each command in the code blocks of a page.

    In a block with prompts, the lines without one are output.
    """
    lines = [
        line.strip()
        for block in blocks(text)
        for line in block.splitlines()
        if line.startswith("$ ") or "$ flowmapsr" not in block
    ]
    for line in lines:
        line = line.removeprefix("$ ")
        if not re.match(r"(\w+=\S+ )*(\S*/)?flowmapsr ", line):
            continue  # another program
        words = shlex.split(line, comments=True)
        words = words[next(i for i, word in enumerate(words) if "flowmapsr" in word) + 1 :]
        end = next((i for i, word in enumerate(words) if word in SHELL), len(words))
        yield words[:end]


def parse(words: list[str]) -> list[str]:
    """Parses a command without running it; its own options.

    Raises:
        typer.BadParameter: and other usage errors, for wrong words.
    """
    command, names = typer.main.get_command(app), list(words)
    while isinstance(command, TyperGroup) and names and names[0][:2] != "--":
        found = command.get_command(None, names[0])
        assert found is not None, words
        if names[0] in command.commands:  # else it stands for a recipe, which is an argument
            names.pop(0)
        command = found
    assert not isinstance(command, TyperGroup) or names[:1] in (["--help"], ["--version"]), words
    if "--help" not in names and "--version" not in names:
        command.make_context(words[0], names)
    return [option for parameter in command.params for option in parameter.opts]


DOCUMENTED = [
    pytest.param(words, id=f"{page.stem}: {shlex.join(words)}")
    for page in PAGES
    for words in commands(page.read_text())
]


@pytest.mark.parametrize("words", DOCUMENTED)
def test_a_documented_command_works_as_printed(
    words: list[str], invoke: Invoke, tmp_path: Path
) -> None:
    options = parse(words)
    if "--dry-run" not in options or {"RECIPE", "--help"} & set(words):
        return
    for page in PAGES:
        for block in blocks(page.read_text()):
            if name := re.match(r"# (\S+\.ya?ml)\n", block):
                (tmp_path / name[1]).write_text(block)
    dry = [] if "--dry-run" in words else ["--dry-run"]
    ended = invoke(*words, *dry, env={"RAY_ADDRESS": "10.0.0.1:6379"})
    assert ended.code == 0, ended.err
    assert isinstance(yaml.safe_load(ended.out), dict)


def test_all_pages_have_commands() -> None:
    assert len(DOCUMENTED) >= 8 and [PAGES[0].name, PAGES[-1].parent.name] == ["README.md", "docs"]


def test_commands_are_found_in_a_page() -> None:
    page = (
        "Text flowmapsr train.\n```sh\n$ flowmapsr train demo \\\n"
        "  'workers={min: 1}' > x.yaml  # comment\nflowmapsr  x4 is output\n```\n"
        "```\nA=1 .venv/bin/flowmapsr status /r && ls\nflowmapsr-like\npython x.py\n```\n"
    )
    assert list(commands(page)) == [["train", "demo", "workers={min: 1}"], ["status", "/r"]]


@pytest.mark.parametrize("words", [["train"], ["status", "/r", "--dry"], ["dataset", "make"]])
def test_a_wrong_command_is_found(words: list[str]) -> None:
    with pytest.raises((Exception, AssertionError)) as raised:
        parse(words)
    assert not isinstance(raised.value, KeyError | AttributeError)


def test_torchrun_accepts_what_a_dry_run_prints(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `flowmapsr train ... --dry-run > recipe.yaml; torchrun -m training.run recipe.yaml`."""
    ended = invoke("train", "demo", "manifest=/set", "output=/run", "--dry-run")
    recipe = TrainingRecipe.model_validate(yaml.safe_load(ended.out))
    assert recipe.model_dump(mode="json") == yaml.safe_load(ended.out)
    assert (recipe.output, recipe.stages[0].name) == ("/run", "warmup")


def all_commands() -> Iterator[tuple[list[str], str]]:
    """Words and help text of every command and group."""
    groups = [([], typer.main.get_command(app))]
    for words, command in groups:
        yield words, command.help or ""
        if isinstance(command, TyperGroup):
            groups += [([*words, name], one) for name, one in command.commands.items()]


@pytest.mark.parametrize(("words", "text"), list(all_commands()))
def test_help_fits_80_columns_with_whole_examples(
    words: list[str], text: str, invoke: Invoke
) -> None:
    ended = invoke(*words, "--help", env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    lines = [line.strip() for line in ended.out.splitlines()]
    examples = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert [example for example in examples if example not in lines] == []
    for example in examples:  # some are for a shell to evaluate
        command = example.removeprefix('eval "$(').removesuffix(')"')
        assert parse(shlex.split(command)[1:])
    assert max(map(len, ended.out.splitlines())) <= 80
    listed = ended.out.partition("Commands:")[2]
    assert "..." not in listed and "{" not in lines[0]
    assert len(text.splitlines()[0]) <= 75 if not words else len(text.splitlines()[0]) <= 60


def test_groups_are_listed_first(invoke: Invoke) -> None:
    listed = invoke("--help").out.partition("Commands:")[2].split()
    assert listed[0] == "dataset"


def test_the_recipe_named_for_training_has_the_codec_of_the_dataset() -> None:
    for codec, name in STARTING_RECIPES.items():
        assert dataset_recipe(name, ["sources=[/p]", "output=/o"]).codec.kind == codec

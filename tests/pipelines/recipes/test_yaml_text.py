"""Text that unfolds without end is refused within a second, wherever a user may give YAML."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.recipes.files import read_recipe
from pipelines.recipes.overrides import RecipeError, parse_overrides
from training.run import main
from training.settings.yaml_text import parse_yaml

LAUGHS = "\n".join(
    ["a0: &a0 [ha, ha]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
)
MERGES = "\n".join(
    [
        "m0: &m0 {k: v}",
        *(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" for n in range(1, 10)),
    ]
)
BOMBS = {
    "aliases": (LAUGHS, "its aliases stand for .* values"),
    "merged": (MERGES, "its aliases stand for .* values"),
    "itself": ("training: &a {stages: [*a]}", "it holds itself"),
    "itself as a key": ("&a {? *a : 1}", "it holds itself"),
    "deep lists": ("[" * 100_000, "nests too deeply"),
    "deep mappings": ('{"a":' * 100_000, "nests too deeply"),
    "deep blocks": ("- " * 20_000 + "1", "nests too deeply"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unfolds_without_end_is_refused_in_a_second(tmp_path: Path, name: str) -> None:
    text, message = BOMBS[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(RecipeError, match=rf"recipe\.yaml.*: .*{message}"):
        read_recipe(str(path))
    if "\n" not in text:
        with pytest.raises(RecipeError, match=rf"model = .*not a YAML value \(.*{message}"):
            parse_overrides([f"model={text}"])
    assert time.process_time() - start < 2


def test_the_launched_module_refuses_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(LAUGHS)
    monkeypatch.setattr(sys, "argv", ["training.run", str(tmp_path / "recipe.yaml")])
    assert main() == 2
    assert "its aliases stand for" in capsys.readouterr().err


def test_aliases_that_a_recipe_may_have_are_read() -> None:
    text = "base: &base {a: 1, b: 2}\none: {<<: *base, b: 3}\ntwo: [*base, *base]"
    values = parse_yaml(text)
    assert values["one"] == {"a": 1, "b": 3} and values["two"] == [{"a": 1, "b": 2}] * 2


@pytest.mark.parametrize("text", ["2026-13-45", "!!int x", "!!bool x", "!!timestamp x", "1" * 9999])
def test_values_that_yaml_cannot_make_are_no_traceback(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)

"""Recipes in files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.pipelines.recipes.texts import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe file into the working folder and gives its path."""
    monkeypatch.chdir(tmp_path)

    def to(name: str, text: str) -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return f"./{name}"

    return to

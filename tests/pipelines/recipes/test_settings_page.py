"""The reference of settings is complete and current."""

from __future__ import annotations

from pathlib import Path

from pipelines.recipes.settings_page import page

ROOT = Path(__file__).parents[3]


def test_the_settings_page_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == page(), "run: python -m pipelines.recipes.settings_page > docs/settings.md"


def test_a_row_has_type_default_meaning_and_group() -> None:
    others = page().partition("## `benchmark`")[0]  # many of its settings have names of others
    rows = {line.split("|")[1].strip(): line for line in others.splitlines() if line[:3] == "| `"}
    assert "integer, ≥ 1 or settings | `1` | Processes that train" in rows["`workers`"]
    assert "number, > 0 | `4.0e-05` |" in page() and "| correctable |" in rows["`lr_warmup_steps`"]
    assert rows["`patience`"].endswith("| correctable |"), "as all of early_stopping"
    assert "*required*" in rows["`photos`"] and rows["`manifest`"].endswith("| execution |")

"""The table of what happens when a part dies names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_that_the_page_names_exists() -> None:
    page = (TESTS.parent / "docs/operations.md").read_text()
    table = page.partition("## What happens when each part dies")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", table))
    files = [file.read_text() for file in TESTS.rglob("test_*.py")]
    existing = {name for text in files for name in re.findall(r"^def (test_\w+)", text, re.M)}
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(named) == len(rows) - 1 > 10, "each row but the head names one test"
    assert named <= existing, f"no such tests: {named - existing}"

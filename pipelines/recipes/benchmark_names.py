"""The recipes of benchmarks that come with the package, each a command; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = Path(__file__).parent / "benchmarks"


def bundled_benchmarks() -> dict[str, str]:
    """Names, and what each is for: its first line."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in sorted(BENCHMARKS.glob("*.yaml"))
    }

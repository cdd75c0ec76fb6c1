"""Formats times, tables and command lines for people."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column aligned left and the others right; ruled on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    ruled = sys.stdout.isatty()
    grid = Table(box=box.SIMPLE_HEAD if ruled else None, pad_edge=ruled)
    for column, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    console = Console(file=StringIO(), width=1000, no_color=True, markup=False, highlight=False)
    with console.capture() as printed:
        console.print(grid)
    return [line.rstrip() for line in printed.get().splitlines() if line.strip()]


def yaml_lines(values: Mapping[str, Any]) -> list[str]:
    """A tree of values as YAML."""
    import yaml

    text = yaml.safe_dump(dict(values), sort_keys=False, width=100, allow_unicode=True)
    return text.splitlines()


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def command(*words: str) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(["flowmapsr", *words])

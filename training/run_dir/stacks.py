"""The stack traces that hung workers leave in a folder of their stage."""

from __future__ import annotations

import time
from pathlib import Path

STAMP = "%Y%m%d-%H%M%S"


def stack_files(folder: Path) -> list[Path]:
    """The stack traces of a stage, in order of time.

    Those of frozen processes are renamed first.
    """
    for frozen in folder.glob(".rank-*"):
        keep_frozen(frozen)
    return sorted(folder.glob("[!.]*.txt"))


def keep_frozen(path: Path) -> None:
    """Renames leftover traces of a frozen process so that no worker acts on them."""
    if path.is_file() and path.stat().st_size:
        stamp = time.strftime(STAMP, time.gmtime(path.stat().st_mtime))
        path.rename(path.with_name(f"{stamp}-frozen-{path.name.removeprefix('.')}.txt"))

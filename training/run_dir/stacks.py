"""The stack traces that hung workers leave in a folder of their stage.

The first line of a file is a `StackHeader`; a process that was frozen in C leaves none.
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from datagen.records import FrozenModel

STAMP = "%Y%m%d-%H%M%S"


class StackHeader(FrozenModel):
    """Which worker was ended, and why."""

    rank: int
    world_size: int
    stalled: bool
    """It made no progress itself; else it was ended because another worker did not."""
    outside: bool = False
    """Its whole process stood still: it was killed from outside, and left no stack traces."""
    reason: str

    def __str__(self) -> str:
        return f"worker {self.rank} of {self.world_size}: {self.reason}"


def stack_files(folder: Path) -> list[Path]:
    """The stack traces of a stage, in order of time; those of frozen processes are renamed."""
    for frozen in folder.glob(".rank-*"):
        keep_frozen(frozen)
    return sorted(folder.glob("[!.]*.txt"))


def stall_reason(files: list[Path]) -> str:
    """Why workers were ended, by the traces of one stall: the reason of one that hung itself, and
    of one whose process stood still before those that waited for it."""
    firsts = [path.read_text().split("\n", 1)[0] for path in files]
    headers = [header for line in firsts if (header := _header(line))]
    headers.sort(key=lambda header: (header.outside, header.stalled), reverse=True)
    return str((headers or firsts)[0])


def keep_frozen(path: Path) -> None:
    """Renames leftover traces of a frozen process so that no worker acts on them."""
    if path.is_file() and path.stat().st_size:
        stamp = time.strftime(STAMP, time.gmtime(path.stat().st_mtime))
        path.rename(path.with_name(f"{stamp}-frozen-{path.name.removeprefix('.')}.txt"))


def _header(line: str) -> StackHeader | None:
    try:
        return StackHeader.model_validate_json(line)
    except ValidationError:  # a frozen process's traces
        return None

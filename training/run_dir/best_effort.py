"""Files that only report on a training: one that cannot be written does not end it.

On a full disk training continues and these files miss a part; what it cannot do without (its last
checkpoint, its model) raises.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datagen.errors import FlowmapsrError
from datagen.records import Record, UnreadableRecord, read_record

log = logging.getLogger(__name__)

_WARNED: set[str] = set()
_BLOCK = 1 << 16


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Writes `what` in the block; a failure is a warning, once for each `what`."""
    try:
        yield
    except (FlowmapsrError, OSError) as error:
        if what not in _WARNED:
            _WARNED.add(what)
            log.warning("%s cannot be written: %s; training continues without it", what, error)


def read_or_warn(path: Path, kind: type[Record], *, remedy: str) -> Record | None:
    """The record in a file; one that cannot be read is a warning, and None like a missing one."""
    try:
        return read_record(path, kind, remedy=remedy)
    except UnreadableRecord as error:
        log.warning("%s", error)
        return None


def append_lines_atomically(path: Path, text: str) -> None:
    """Appends lines to a file: all of them or, with an OSError, none.

    An incomplete last line, left by a killed process, is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        end = _end_of_lines(file)
        file.truncate(end)
        left = text.encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def _end_of_lines(file: BinaryIO) -> int:
    """The offset after the last complete line."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0

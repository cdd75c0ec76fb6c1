"""Files that only report on a training: one that cannot be written does not end it.

On a full disk training continues and these files miss a part; what it cannot do without (its last
checkpoint, its model) raises.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datagen.errors import FlowmapsrError
from datagen.records import Record, UnreadableRecord, read_record

log = logging.getLogger(__name__)

_WARNED: set[str] = set()
_FULL_DISK = "a full disk"
_BLOCK = 1 << 16


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Writes `what` in the block; a failure is a warning, once for each `what`, and once for all of
    them where a disk is full."""
    try:
        yield
    except (FlowmapsrError, OSError) as error:
        if is_full_disk(error):
            told, rest = not tells_full_disk(), ", and without others while the disk is full"
        else:
            told, rest = what in _WARNED, ""
            _WARNED.add(what)
        if not told:
            text = "%s cannot be written: %s; training continues without it%s"
            log.warning(text, what, error, rest)


def tells_full_disk() -> bool:
    """Whether this process has not told yet that a disk is full; whoever asks tells it."""
    told = _FULL_DISK in _WARNED
    _WARNED.add(_FULL_DISK)
    return not told


def is_full_disk(error: Exception) -> bool:
    """Whether a disk of this machine had no space, or its user's quota none."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


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

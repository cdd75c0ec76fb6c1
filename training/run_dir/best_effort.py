"""Files that only tell of a training: one that cannot be written does not end it.

Where a disk is full, training goes on and they miss a part; what it cannot do without (its last
checkpoint, its model) says so itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datagen.errors import FlowmapsrError

log = logging.getLogger(__name__)

_TOLD: set[str] = set()


@contextmanager
def secondary(what: str) -> Iterator[None]:
    """Writes something of this kind in the block; that it cannot be written is a warning, once for
    every kind."""
    try:
        yield
    except (FlowmapsrError, OSError) as error:
        _warn_once(what, str(error))


def append_whole(path: Path, text: str) -> None:
    """Adds lines to a file: all of them or, where they find no room, none.

    What a killed process left of a last line ends there first.

    Raises:
        OSError: the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            text = text if file.read(1) == b"\n" else "\n" + text
        left = text.encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def _warn_once(what: str, reason: str) -> None:
    if what not in _TOLD:
        _TOLD.add(what)
        log.warning("%s cannot be written, training goes on without it: %s", what, reason)

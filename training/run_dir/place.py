"""Where a run's folder is: tells a copy of a run from the run itself, moved or reached another way.

The file `folder_id` in it is written once. Its content goes along with a copy, its time of change
(ctime, which nothing can set) does not, whatever the machine and the path to a folder.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from pathlib import Path

from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.paths import RunPaths

ROUNDING = 10_000_000
"""Nanoseconds by which two network file systems may differ about a time."""


class Place(FrozenModel):
    """A run's folder, as it was found."""

    path: str
    host: str
    id: str
    """Content of `folder_id`, which copies have too."""
    changed: int
    """Its time of change, nanoseconds since the epoch, which copies do not have."""
    inode: int


def place_of(run: Path) -> Place:
    """Where a run's folder is now; without an ID before `give_id`."""
    path, host = str(run.resolve()), socket.gethostname()
    file = RunPaths(run).folder_id
    if not file.is_file():
        return Place(path=path, host=host, id="", changed=0, inode=0)
    found = file.stat()
    return Place(
        path=path, host=host, id=file.read_text(), changed=found.st_ctime_ns, inode=found.st_ino
    )


def give_id(run: Path, known: Place | None) -> None:
    """Writes `folder_id` where there is none; the one that it had, if that is known."""
    file = RunPaths(run).folder_id
    if not file.is_file():
        id = known.id if known is not None else secrets.token_hex(16)
        storage.create_exclusive(str(file), id.encode())


def is_copy(known: Place, now: Place) -> bool:
    """Whether the folder that was at `known` is another one than that at `now`, and still there.

    Where that cannot be seen, as on another machine, a folder counts as a copy if nothing shows
    that it is the same: a run that is taken for a copy loses nothing.
    """
    old = Path(known.path)
    if now.path != known.path and _has_id(old, known.id):
        return not _is_same_folder(Path(now.path), old)
    # `chmod -R` changes the time too, but not the inode.
    is_same_file = abs(now.changed - known.changed) < ROUNDING or (
        now.inode == known.inode and now.path == known.path
    )
    return now.host != known.host and not is_same_file


def _has_id(run: Path, id: str) -> bool:
    try:
        return RunPaths(run).folder_id.read_text() == id
    except OSError:
        return False


def _is_same_folder(one: Path, other: Path) -> bool:
    """Also by two mounts of it: what is written into the one is in the other."""
    try:
        if os.path.samefile(one, other):
            return True
        with tempfile.NamedTemporaryFile(dir=one, prefix=".folder_id-") as probe:
            return (other / Path(probe.name).name).exists()
    except OSError:  # read only
        return False

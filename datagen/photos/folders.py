"""Walks a folder of photos on a disk: whatever one entry is, the walk goes on and names it.

Knows no formats; `storage.scan` is the plain listing for everything else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from datagen.io import local
from datagen.io.local import Entry
from datagen.photos.source_file import PassedOver, Rejection

_ALL_MAY_READ = 0o444


def walk(root: str, *, exclude: str | None = None) -> Iterator[Entry | Rejection | PassedOver]:
    """Every file below a folder and the folders that it links to, each folder once.

    Linked folders come after the folders that are there themselves, in the order of their paths, so
    that a photo has the same URI always. What cannot be read is a rejection ("missing", "link to
    itself", "no permission", "path too long"), where a folder's URI ends with a slash. `exclude` is
    a folder to leave out, wherever a link leads to it.

    Raises:
        FlowmapsrError: the root cannot be read, or the disk fails.
    """
    with local.errors(root, "list"):
        os.listdir(root)
    excluded = None if exclude is None else _identity(exclude)
    seen: set[tuple[int, int] | None] = set()
    folders, links = [root], list[str]()
    while folders or links:
        links.sort(reverse=True)
        linked = not folders
        folder = links.pop() if linked else folders.pop()
        identity = _identity(folder)
        if excluded is not None and identity == excluded:
            continue
        if identity is not None and (identity in seen or (linked and _is_loop(folder))):
            yield PassedOver("link to a folder that is read already", 1, folder)
            continue
        seen.add(identity)
        try:
            with os.scandir(folder) as items:
                for item in items:
                    yield from _item(item, folders, links)
        except OSError as error:
            yield _rejection(folder + "/", error)


def _item(
    item: os.DirEntry[str], folders: list[str], links: list[str]
) -> Iterator[Entry | Rejection | PassedOver]:
    """What one entry gives; a folder is added to those that are still to be listed."""
    try:
        if item.is_dir(follow_symlinks=False):
            folders.append(item.path)
            return
        status = item.stat()
        if item.is_dir():
            links.append(item.path)
        elif not item.is_file():
            yield PassedOver("special file", 1, item.path)
        elif status.st_mode & _ALL_MAY_READ != _ALL_MAY_READ and not _may_read(item.path):
            yield Rejection(item.path, "no permission")
        else:
            yield local.entry_of(item.path, status)
    except FileNotFoundError:
        if item.is_symlink():  # else deleted since it was listed
            yield Rejection(item.path, "missing")
    except OSError as error:
        yield _rejection(item.path, error)


def _may_read(path: str) -> bool:
    return os.access(path, os.R_OK, effective_ids=True)


def _rejection(path: str, error: OSError) -> Rejection:
    reason = local.reason_of(error)
    if reason is None:
        with local.errors(path, "list"):
            raise error
    assert reason is not None
    return Rejection(path, reason)


def _identity(folder: str) -> tuple[int, int] | None:
    """Device and number of a folder, whichever path leads to it; None if it cannot be found."""
    with contextlib.suppress(OSError):
        status = os.stat(folder)
        return status.st_dev, status.st_ino
    return None


def _is_loop(link: str) -> bool:
    """Whether a link leads to a folder that it is in."""
    target = os.path.realpath(link)
    here = os.path.realpath(os.path.dirname(link))
    return here == target or here.startswith(target.rstrip("/") + "/")

"""The functions of `storage.py` for local paths; a file exists only when complete."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from datagen.errors import FlowmapsrError, NotFoundError

TEMPORARY_SUFFIX = ".tmp"
"""Suffix of files being written, and of those that a killed process leaves."""

_TEMPORARY_NAME = re.compile(rf"\..+\.[0-9a-f]{{12}}{re.escape(TEMPORARY_SUFFIX)}")
_LINK_ATTEMPTS = 5
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_FIXES = {
    errno.ENOSPC: "free some space there or choose another location",
    errno.EDQUOT: "raise the quota there or choose another location",
    errno.EFBIG: "raise the largest file size allowed there or choose another location",
    errno.EIO: "the disk or network share reports an error: check it, or choose another location",
    errno.ESTALE: "the network share is gone: mount it again and run the same command",
    errno.EACCES: "give this user permission there or choose another location",
    errno.EPERM: "give this user permission there or choose another location",
    errno.EROFS: "choose a writable location",
    errno.EEXIST: "part of this path is a file: choose another location",
    errno.ENOTDIR: "part of this path is a file: choose another location",
    errno.EISDIR: "this is a folder where a file is expected",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as listed, not opened.

    `stamp` changes with the file's content: its modification time in nanoseconds on a disk, the
    ETag on S3.
    """

    uri: str
    bytes: int
    stamp: str


def entry(path: str) -> Entry | None:
    with errors(path, "look at"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return _entry(path, status)
    return None


def scan(path: str) -> Iterator[Entry]:
    """Every file below the folder in any order, or the file itself; NotFoundError if neither.

    Links to files are followed, links to folders are not: they may form a cycle. A broken link is
    listed too, so that reading it names what is missing.
    """
    itself = entry(path)
    if itself is not None:
        yield itself
        return
    if not os.path.isdir(path):
        raise NotFoundError(f"{path}: there is no such file or folder; check the path")
    folders = [path]
    while folders:
        folder = folders.pop()
        with errors(folder, "list"), os.scandir(folder) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    if item.is_file():
                        yield _entry(item.path, item.stat())
                    elif item.is_symlink() and not os.path.exists(item.path):
                        yield _entry(item.path, item.stat(follow_symlinks=False))


def names(folder: str, start: str) -> list[str]:
    with errors(folder, "list"), contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(folder) if name.startswith(start)]
    return []


def read_bytes(path: str) -> bytes:
    with errors(path, "read"):
        return Path(path).read_bytes()


def read_range(path: str, *, start: int, length: int) -> bytes:
    with errors(path, "read"), open(path, "rb", buffering=0) as stream:
        stream.seek(start)
        parts = []
        while length > 0 and (part := stream.read(length)):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def open_random(path: str) -> IO[bytes]:
    with errors(path, "read"):
        return open(path, "rb")


@contextlib.contextmanager
def open_atomic(path: str) -> Iterator[IO[bytes]]:
    """A file to write that appears when the block ends: temporary name, fsync, rename."""
    target = Path(path)
    with errors(path, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            with open(temporary, "xb") as stream:
                yield stream
                _sync(stream)
            os.replace(temporary, target)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(target.parent)


def write_bytes(path: str, data: bytes) -> None:
    with open_atomic(path) as stream:
        stream.write(data)


def create_exclusive(path: str, data: bytes) -> bool:
    """Publishes the whole of `data` if nothing is at the path; False if something is.

    Where the file system has no hard links the file is created and then filled, so that a reader
    may find it empty there.
    """
    target = Path(path)
    with errors(path, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_LINK_ATTEMPTS):
            # Another build may delete the temporary file as a leftover.
            with contextlib.suppress(FileNotFoundError):
                return _link_whole(target, data)
        return _link_whole(target, data)


def delete(path: str) -> None:
    with errors(path, "delete"):
        Path(path).unlink(missing_ok=True)


def delete_empty_folder(path: str) -> None:
    with errors(path, "delete"), contextlib.suppress(FileNotFoundError):
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def remove_leftovers(folder: str) -> list[str]:
    """Deletes temporary files that killed processes left below the folder; returns their paths."""
    if not os.path.isdir(folder):
        return []
    found = [item.uri for item in scan(folder) if is_temporary(item.uri)]
    for path in found:
        delete(path)
    return sorted(found)


def is_temporary(path: str) -> bool:
    return _TEMPORARY_NAME.fullmatch(os.path.basename(path)) is not None


@contextlib.contextmanager
def errors(path: str, action: str) -> Iterator[None]:
    """Turns an OSError into a FlowmapsrError that names the file, the reason and the fix."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: there is no such file; check the path") from error
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "check the path and try again")
        reason = error.strerror or str(error)
        raise FlowmapsrError(f"{path}: cannot {action} it ({reason}); {fix}") from error


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, str(status.st_mtime_ns))


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def _link_whole(target: Path, data: bytes) -> bool:
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            _sync(stream)
        won = _link(temporary, target, data)
    finally:
        _remove(temporary)
    if won:
        _sync_folder(target.parent)
    return won


def _link(temporary: Path, target: Path, data: bytes) -> bool:
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        # A network file system may repeat the call after a lost answer: two links mean success.
        return os.stat(temporary).st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    try:
        with open(target, "xb") as stream:
            stream.write(data)
            _sync(stream)
    except FileExistsError:
        return False
    return True


def _remove(temporary: Path) -> None:
    # Do not mask the original error.
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The functions of `storage.py` for local paths; a file exists only when complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from datagen.errors import ChangedError, FlowmapsrError, NotFoundError, UnreadableError

_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")
"""Of a file being written, or left by a killed process: the name it was to get, and a token."""
_OLD = 2.0
"""Seconds after which a file that is being written has its lock."""
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_REASONS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ELOOP: "link to itself",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENAMETOOLONG: "path too long",
}
"""What is wrong with one path and not with its disk, short and stable, for counting."""
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
    errno.ENAMETOOLONG: "choose a shorter name or a folder nearer to the root",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: "all files that this machine may open are open: end other programs",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as listed, not opened."""

    uri: str
    bytes: int
    stamp: str
    """Changes with the content: modification time in nanoseconds on a disk, the ETag on S3."""


def entry(path: str) -> Entry | None:
    with errors(path, "look at"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return entry_of(path, status)
    return None


def modified(path: str) -> float | None:
    with errors(path, "look at"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(path).st_mtime
    return None


def scan(path: str) -> Iterator[Entry]:
    """Links to files are followed, links to folders are not: they may form a cycle."""
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
                        yield entry_of(item.path, item.stat())


def names(folder: str, start: str) -> list[str]:
    with errors(folder, "list"), contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(folder) if name.startswith(start)]
    return []


def read_bytes(path: str) -> bytes:
    with errors(path, "read"):
        return Path(path).read_bytes()


def read_range(path: str, *, start: int, length: int, stamp: str | None = None) -> bytes:
    with errors(path, "read"), open(path, "rb") as stream:
        if stamp is not None and entry_of(path, os.fstat(stream.fileno())).stamp != stamp:
            raise ChangedError(f"{path}: it was changed while it was in use")
        stream.seek(start)
        return stream.read(max(length, 0))


def open_random(path: str) -> IO[bytes]:
    with errors(path, "read"):
        return open(path, "rb")


@contextlib.contextmanager
def open_atomic(path: str) -> Iterator[IO[bytes]]:
    """A file to write that appears when the block ends: temporary name, fsync, rename."""
    with errors(path, "write"), temporary(path) as stream:
        yield stream
        _sync(stream)
        os.replace(stream.name, path)
        _sync_folder(path)


def write_bytes(path: str, data: bytes) -> None:
    with open_atomic(path) as stream:
        stream.write(data)


def create_exclusive(path: str, data: bytes) -> bool:
    """Without hard links the file is created, then filled: a reader may find it empty there."""
    with errors(path, "write"):
        for _ in range(5):
            # Another build may delete the temporary file as a leftover.
            with contextlib.suppress(FileNotFoundError):
                return _link_whole(path, data)
        return _link_whole(path, data)


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
    if not os.path.isdir(folder):
        return []
    found = [item.uri for item in scan(folder) if is_temporary(item.uri)]
    for path in found:
        delete(path)
    return sorted(found)


def is_temporary(path: str) -> bool:
    return _TEMPORARY_NAME.fullmatch(os.path.basename(path)) is not None


def remove_abandoned(folder: str, wanted: Container[str]) -> list[str]:
    """Removes unfinished files of killed processes that were to get one of these names in the
    folder; safe while others write there, as those hold a lock. Returns their paths, sorted."""
    gone = []
    for name in names(folder, "."):
        match = _TEMPORARY_NAME.fullmatch(name)
        path = os.path.join(folder, name)
        if match and match[1] in wanted and _is_abandoned(path):
            delete(path)
            gone.append(path)
    return sorted(gone)


def _is_abandoned(path: str) -> bool:
    """Whether nobody holds the lock of a file; not where there are no locks."""
    try:
        with open(path, "r+b") as stream:
            if time.time() - os.fstat(stream.fileno()).st_mtime < _OLD:
                return False
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def errors(path: str, action: str) -> Iterator[None]:
    """Turns an OSError into a FlowmapsrError that names the file, the reason and the fix."""
    try:
        yield
    except FileNotFoundError as error:
        missing = "there is no such file; check the path"
        if action == "write":  # its folder is gone, or the system lets none be made there
            missing = "nothing can be made there; choose another location"
        lost = dangling_link(path) or missing
        raise NotFoundError(f"{path}: {lost}") from error
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR) and (lost := dangling_link(path)):
            raise FlowmapsrError(f"{path}: cannot {action} it: {lost}") from error
        if error.errno == errno.ELOOP:
            message = f"{path}: a link that leads to itself; remove it"
            raise NotFoundError(message, "link to itself") from error
        fix = _FIXES.get(error.errno or 0, "check the path and try again")
        message = f"{path}: cannot {action} it ({error.strerror or error}); {fix}"
        reason = reason_of(error)
        raise (UnreadableError(message, reason) if reason else FlowmapsrError(message)) from error


def dangling_link(path: str | Path) -> str:
    """The link in a path that leads to nothing, with what to do; nothing where there is none."""
    for part in (*reversed(Path(path).parents), Path(path)):
        if part.is_symlink() and not part.exists():
            return (
                f"{part} is a link to {os.readlink(part)}, which is not there; make that folder, "
                "mount its disk, or remove the link"
            )
    return ""


def reason_of(error: OSError) -> str | None:
    """What is wrong with this path alone; None if its disk or share fails."""
    return _REASONS.get(error.errno or 0)


def entry_of(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, str(status.st_mtime_ns))


@contextlib.contextmanager
def temporary(path: str) -> Iterator[IO[bytes]]:
    """A file in the folder of `path` (which is made), removed after the block unless renamed. It is
    locked for the block, where that is possible, so that nobody takes it for a leftover."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    unfinished = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(unfinished, "x+b") as stream:
            with contextlib.suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stream
    finally:
        with contextlib.suppress(OSError):  # gone, or an error that would hide the first one
            os.unlink(unfinished)


def _link_whole(path: str, data: bytes) -> bool:
    with temporary(path) as stream:
        stream.write(data)
        _sync(stream)
        won = _link(stream.name, path, data)
    if won:
        _sync_folder(path)
    return won


def _link(temporary: str, path: str, data: bytes) -> bool:
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        # A network file system may repeat the call after a lost answer: two links mean success.
        return os.stat(temporary).st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    try:
        with open(path, "xb") as stream:
            stream.write(data)
            _sync(stream)
    except FileExistsError:
        return False
    return True


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(path: str) -> None:
    """Makes the new name survive a power cut."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Reads and writes files by URI (local path or `s3://`); a file exists only when complete.

Every function may raise NotFoundError or FlowmapsrError, which name the URI.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO

from datagen.errors import ChangedError as ChangedError
from datagen.errors import NotFoundError as NotFoundError
from datagen.errors import UnreadableError as UnreadableError
from datagen.io import local, s3
from datagen.io.local import Entry

_PIECE = 4 << 20


def is_remote(uri: str) -> bool:
    """Whether the URI is in S3; UnreadableError if it is not local either."""
    if uri.startswith(s3.SCHEME):
        return True
    if "://" in uri or "\0" in uri:
        message = f"{uri!r}: only local paths and s3:// addresses can be used"
        raise UnreadableError(message, "not an address")
    return False


def join(uri: str, *parts: str) -> str:
    """The URI of something inside the folder `uri`."""
    return "/".join([uri.rstrip("/") if uri != "/" else "", *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether there is a file, a folder or (on S3) anything below the prefix."""
    return s3.exists(uri) if is_remote(uri) else os.path.exists(uri)


def entry(uri: str) -> Entry | None:
    """One file as listed, None when there is none: one request on S3."""
    return s3.entry(uri) if is_remote(uri) else local.entry(uri)


def size(uri: str) -> int | None:
    """Bytes of the file, None when there is none."""
    found = entry(uri)
    return None if found is None else found.bytes


def modified(uri: str) -> float | None:
    """When the file was written, in seconds since the epoch; None when there is none."""
    return (s3 if is_remote(uri) else local).modified(uri)


def scan(uri: str) -> Iterator[Entry]:
    """Every file below the folder or prefix, in any order; of a file, itself.

    Streamed: a listing may have millions of files. An existing empty folder on a disk has none.

    Raises:
        NotFoundError: there is nothing at the URI.
    """
    return s3.scan(uri) if is_remote(uri) else local.scan(uri)


def names(folder: str, start: str) -> list[str]:
    """Names of the files directly in the folder that begin with `start`, sorted; none if missing.

    On S3 only the matching files are listed.
    """
    return sorted((s3 if is_remote(folder) else local).names(folder, start))


def list_files(uri: str) -> list[str]:
    """Full URIs of all files that `scan` finds, sorted."""
    return sorted(found.uri for found in scan(uri))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    return s3.read_bytes(uri) if is_remote(uri) else local.read_bytes(uri)


def read_range(uri: str, *, start: int, length: int, stamp: str | None = None) -> bytes:
    """`length` bytes from the byte `start`, fewer where the file ends.

    Raises:
        ChangedError: the file no longer has the `stamp` that `entry` told.
    """
    where = s3 if is_remote(uri) else local
    return where.read_range(uri, start=start, length=length, stamp=stamp)


def read_pieces(uri: str, *, length: int) -> Iterator[bytes]:
    """The first `length` bytes in pieces of 4 MB, each read (and on S3 retried) separately."""
    for start in range(0, length, _PIECE):
        yield read_range(uri, start=start, length=min(_PIECE, length - start))


def open_random(uri: str) -> IO[bytes]:
    """The file to read and seek in; on S3 it is fetched in ranges of 1 MB as they are needed."""
    return s3.open_random(uri) if is_remote(uri) else local.open_random(uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Publishes `data` atomically: readers see the old file or the whole new one."""
    (s3 if is_remote(uri) else local).write_bytes(uri, data)


def open_atomic(uri: str) -> AbstractContextManager[IO[bytes]]:
    """A binary file to write that appears at `uri` when the block ends, not at all if it raises.

    Local: a temporary name in the same folder, then fsync and rename. S3: a local temporary file,
    then one put.
    """
    return s3.open_atomic(uri) if is_remote(uri) else local.open_atomic(uri)


def create_exclusive(uri: str, data: bytes) -> bool:
    """Publishes the whole of `data` at `uri` if nothing is there; False if something is.

    Of any number of concurrent callers exactly one gets True. `data` must be unique to the caller
    (contain a random token): if S3's answer is lost, the content shows whose put succeeded.
    """
    return (s3 if is_remote(uri) else local).create_exclusive(uri, data)


def delete(uri: str) -> None:
    """Removes one file; a missing file is no error."""
    (s3 if is_remote(uri) else local).delete(uri)


def delete_empty_folder(uri: str) -> None:
    """Removes an empty folder; on S3 there are none."""
    if not is_remote(uri):
        local.delete_empty_folder(uri)


def is_temporary(uri: str) -> bool:
    """Whether the name is that of a file being written."""
    return not is_remote(uri) and local.is_temporary(uri)


def remove_leftovers(folder: str) -> list[str]:
    """Removes unfinished files of killed processes below the folder; returns their URIs, sorted.

    Temporary files on a disk, unfinished multipart uploads on S3. Safe only while no other process
    writes there: hold the lock.
    """
    return (s3 if is_remote(folder) else local).remove_leftovers(folder)

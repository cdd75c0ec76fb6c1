"""Turns source URIs into the ordered list of their image files, with sizes and stamps.

Lists only: no image is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.archives import is_hidden, scan_archive
from datagen.photos.decode import SUFFIXES
from datagen.photos.source_file import Rejection, SourceFile

ARCHIVE, LIST = ".tar", ".txt"
_THREADS = 16


@dataclass(frozen=True)
class Listing:
    """Files in the order of their URIs, each once, and what was left out."""

    files: tuple[SourceFile, ...]
    rejected: tuple[Rejection, ...]


def list_sources(sources: Sequence[str], *, exclude: str | None = None) -> Listing:
    """Lists folders, prefixes, files, archives and lists; the order of `sources` does not matter.

    In folders and archives only image files count, and none that are hidden. A missing file of a
    list is a rejection, and so is an unusable member of an archive. `exclude` is a folder or prefix
    to leave out: the dataset.

    Raises:
        FlowmapsrError: a source is missing or has no image file.
    """
    files: dict[str, SourceFile] = {}
    rejected: dict[str, Rejection] = {}
    for source in sources:
        for item in _list_one(source, exclude):
            if isinstance(item, Rejection):
                rejected[item.uri] = item
            else:
                files[item.uri] = item
    ordered = tuple(files[uri] for uri in sorted(files))
    return Listing(ordered, tuple(rejected[uri] for uri in sorted(rejected)))


def _list_one(source: str, exclude: str | None) -> Iterator[SourceFile | Rejection]:
    if not storage.is_remote(source):
        source = os.path.normpath(source)
    count = images = 0
    for item in _expand(source, exclude):
        count += 1
        if not isinstance(item, storage.Entry):
            images += 1
            yield item
    if not images:
        raise FlowmapsrError(
            f"{source}: no photo in it; looked for {' '.join(sorted(SUFFIXES))} and {ARCHIVE} "
            f"among {count} files"
        )


def _expand(source: str, exclude: str | None) -> Iterator[SourceFile | Rejection | storage.Entry]:
    """The content of a source; other files are plain entries, to be counted."""
    if source.endswith(LIST):
        yield from _listed(source, exclude)
        return
    for entry in storage.scan(source):
        if exclude is not None and entry.uri.startswith(exclude.rstrip("/") + "/"):
            continue
        hidden = is_hidden(entry.uri.removeprefix(source))
        suffix = PurePosixPath(entry.uri).suffix.lower()
        # On a disk a name may be invalid UTF-8, which cannot be stored as text.
        readable = entry.uri.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if readable != entry.uri:
            yield Rejection(uri=readable, reason="name is not UTF-8")
        elif suffix == ARCHIVE and not hidden:
            yield from scan_archive(entry.uri, entry.stamp)
        elif entry.uri == source or (suffix in SUFFIXES and not hidden):
            yield SourceFile(entry.uri, entry.bytes, entry.stamp)
        else:
            yield entry


def _listed(source: str, exclude: str | None) -> Iterator[SourceFile | Rejection | storage.Entry]:
    """A list has one URI per line; relative paths start from its folder, `#` begins a comment."""
    folder = source.rpartition("/")[0]
    try:
        lines = storage.read_bytes(source).decode("utf-8-sig").splitlines()  # or with a mark
    except UnicodeDecodeError as error:
        raise FlowmapsrError(
            f"{source}: a list of photos is UTF-8 text, one address a line ({error})"
        ) from error
    names = [name for line in lines if (name := line.strip()) and not name.startswith("#")]
    nested = next((name for name in names if name.endswith(LIST)), None)
    if nested is not None:
        raise FlowmapsrError(f"{source}: names another list ({nested}); name its photos instead")

    def look_up(name: str) -> list[SourceFile | Rejection | storage.Entry]:
        relative = "://" not in name and not name.startswith("/")
        uri = storage.join(folder or ".", name) if relative else name
        uri = uri if storage.is_remote(uri) else os.path.normpath(uri)
        try:
            return list(_expand(uri, exclude))
        except storage.NotFoundError:
            return [Rejection(uri=uri, reason="missing")]

    with ThreadPoolExecutor(_THREADS) as threads:  # on S3 every line is a request
        for found in threads.map(look_up, names):
            yield from found

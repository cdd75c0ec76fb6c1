"""Turns source URIs into the ordered list of their image files, with sizes and stamps.

Lists only: no image is opened. What is no photo is counted by its kind.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.archives import is_hidden, scan_archive
from datagen.photos.decode import SUFFIXES
from datagen.photos.folders import walk
from datagen.photos.heic import HEIC_SUFFIXES
from datagen.photos.source_file import PassedOver, Rejection, SourceFile

ARCHIVE, LIST = ".tar", ".txt"
OTHER_ARCHIVES = frozenset({".zip", ".7z", ".rar", ".cbz", ".tgz", ".gz", ".bz2", ".xz", ".zst"})
_THREADS = 16
_KINDS_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """Files in the order of their URIs, each once, and what was left out."""

    files: tuple[SourceFile, ...]
    rejected: tuple[Rejection, ...]
    passed_over: tuple[PassedOver, ...] = ()
    """Other files that are not hidden, by kind: archives first, then the most frequent."""
    lq: Mapping[str, SourceFile] = field(default_factory=dict)
    """The LQ of those that are the HQ of a pair, by their URI."""

    def other_files(self) -> str:
        """What was passed over, for a message; empty if nothing was."""
        kinds = [
            f"{item.files} {item.kind} ({'such as ' if item.files > 1 else ''}{item.example})"
            for item in self.passed_over[:_KINDS_SHOWN]
        ]
        rest = sum(item.files for item in self.passed_over[_KINDS_SHOWN:])
        text = ", ".join([*kinds, f"{rest} others"] if rest else kinds)
        heic = any(item.kind in HEIC_SUFFIXES for item in self.passed_over)
        return f"{text}; pip install 'flowmapsr[heic]' reads HEIC" if heic else text


Found = SourceFile | Rejection | PassedOver


def list_sources(sources: Sequence[str], *, exclude: str | None = None) -> Listing:
    """Lists folders, prefixes, files, archives and lists; the order of `sources` does not matter.

    In folders and archives only image files count, and none that are hidden. What cannot be read is
    a rejection: a line of a list, an entry of a folder, a member of an archive. `exclude` is a
    folder or prefix to leave out: the dataset.

    Raises:
        FlowmapsrError: a source is missing or has no image file.
    """
    return listing_of(item for source in sources for item in _list_one(source, exclude))


def listing_of(found: Iterable[Found]) -> Listing:
    """What was found, in order; of several with one URI the last."""
    files: dict[str, SourceFile] = {}
    rejected: dict[str, Rejection] = {}
    others: dict[str, PassedOver] = {}
    for item in found:
        if isinstance(item, Rejection):
            rejected[item.uri] = item
        elif isinstance(item, SourceFile):
            files[item.uri] = item
        else:
            before = others.get(item.kind, item._replace(files=0))
            example = min(before.example, item.example)
            others[item.kind] = PassedOver(item.kind, before.files + item.files, example)
    return Listing(
        tuple(files[uri] for uri in sorted(files)),
        tuple(rejected[uri] for uri in sorted(rejected)),
        tuple(sorted(others.values(), key=_order)),
    )


def _order(item: PassedOver) -> tuple[bool, int, str]:
    return item.kind not in OTHER_ARCHIVES, -item.files, item.kind


def _list_one(source: str, exclude: str | None) -> Iterator[Found]:
    if not storage.is_remote(source):
        source = os.path.normpath(source)
    others: Counter[str] = Counter()
    images = 0
    for item in _expand(source, exclude):
        if isinstance(item, PassedOver):
            others[item.kind] += item.files
        else:
            images += 1
        yield item
    if not images:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_KINDS_SHOWN))
        raise FlowmapsrError(
            f"{source}: no photo in it; looked for {' '.join(sorted(SUFFIXES))} and {ARCHIVE} "
            f"among {others.total()} files" + (f" ({kinds})" if kinds else "")
        )


def _expand(source: str, exclude: str | None) -> Iterator[Found]:
    """The content of a source."""
    if source.endswith(LIST):
        yield from _listed(source, exclude)
        return
    folder = not storage.is_remote(source) and os.path.isdir(source)
    for item in walk(source, exclude=exclude) if folder else storage.scan(source):
        uri = item.example if isinstance(item, PassedOver) else item.uri
        if exclude is not None and uri.startswith(exclude.rstrip("/") + "/"):
            continue
        if is_hidden(uri.removeprefix(source)):
            continue
        yield from _photos_of(item, uri, named=uri == source)


def _photos_of(
    item: storage.Entry | Rejection | PassedOver, uri: str, *, named: bool
) -> Iterator[Found]:
    """What one entry of a source gives; `named` if it is the source itself."""
    suffix = PurePosixPath(uri).suffix.lower()
    readable = _readable(uri)
    if isinstance(item, PassedOver):
        yield item._replace(example=readable)
    elif not (named or suffix in SUFFIXES or suffix == ARCHIVE or uri.endswith("/")):
        yield PassedOver(suffix or "without suffix", 1, readable)
    elif isinstance(item, Rejection):
        yield item._replace(uri=readable)
    elif readable != uri:
        yield Rejection(uri=readable, reason="name is not UTF-8")
    elif suffix == ARCHIVE:
        try:
            yield from scan_archive(uri, item.stamp)
        except storage.UnreadableError as error:
            if named:
                raise
            yield Rejection(uri, error.reason)
    else:
        yield SourceFile(uri, item.bytes, item.stamp)


def _listed(source: str, exclude: str | None) -> Iterator[Found]:
    """A list has one URI per line; relative paths start from its folder, `#` begins a comment.

    A line that is no address, or that leads to nothing that can be read, is a rejection.
    """
    folder = source.rpartition("/")[0]
    lines = storage.read_bytes(source).removeprefix(codecs.BOM_UTF8).splitlines()
    texts = [line.decode(errors="surrogateescape").strip() for line in lines]
    names = [name for name in texts if name and not name.startswith("#")]
    if names and all(name != _readable(name) or "\0" in name for name in names):
        raise FlowmapsrError(f"{source}: a list of photos is UTF-8 text, one address a line")
    nested = next((name for name in names if name.endswith(LIST)), None)
    if nested is not None:
        raise FlowmapsrError(
            f"{source}: names another list ({nested}); copy its lines into this one, or give both "
            "lists as sources"
        )

    def look_up(name: str) -> list[Found]:
        if name != _readable(name):
            return [Rejection(uri=_readable(name), reason="name is not UTF-8")]
        relative = "://" not in name and not name.startswith("/")
        uri = storage.join(folder or ".", name) if relative else name
        try:
            uri = uri if storage.is_remote(uri) else os.path.normpath(uri)
            return list(_expand(uri, exclude))
        except storage.UnreadableError as error:
            return [Rejection(uri=uri, reason=error.reason)]

    with ThreadPoolExecutor(_THREADS) as threads:  # on S3 every line is a request
        for found in threads.map(look_up, names):
            yield from found


def _readable(name: str) -> str:
    """The name as text that can be stored: on a disk it may be invalid UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")

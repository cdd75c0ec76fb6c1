"""Finds the photos in a tar (WebDataset or plain, local or S3) by its headers; extracts nothing."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator
from typing import IO

from datagen.io import local, storage
from datagen.photos.decode import SUFFIXES
from datagen.photos.source_file import PassedOver, Rejection, SourceFile

LARGEST_MEMBER = 1 << 30  # bytes; a larger one is no photo: it must fit in a worker's memory
_BLOCK = tarfile.BLOCKSIZE
_LONGEST_READ = 1 << 20  # a header with its extensions; a hostile one may request any length
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_UNSAFE = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f\x7f\ud800-\udfff]")
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


def scan_archive(uri: str, stamp: str) -> Iterator[SourceFile | Rejection | PassedOver]:
    """The photos in the tar at `uri`, in its order, streamed; all get its `stamp`.

    A hard link is a photo whose bytes are those of the member that it names; these come last. Other
    files, symbolic links and devices are passed over, folders and hidden files are not named. An
    unusable member is a rejection ("unsafe name in tar", "too large", "sparse file in tar",
    "duplicate name in tar", "broken link in tar"). A damaged tar is one rejection ("not a tar",
    "compressed tar", "truncated tar", "damaged tar") after the photos before the damage.

    Raises:
        FlowmapsrError: the storage cannot be read.
    """
    with local.errors(uri, "read"), storage.open_random(uri) as stream:
        length = stream.seek(0, 2)
        stream.seek(0)
        damage = _damage_at_start(stream.read(_BLOCK))
        if damage:
            yield Rejection(uri, damage)
            return
        names: set[str] = set()
        links: list[tarfile.TarInfo] = []
        for info in _headers(_Guarded(stream, length)):
            if isinstance(info, str):
                yield Rejection(uri, info)
            elif info.isdir() or is_hidden(info.name):
                continue
            elif info.islnk() and _is_photo(info.name):
                links.append(info)
            elif info.isreg() and _is_photo(info.name):
                yield _checked(info, uri=uri, stamp=stamp, names=names)
            else:
                yield PassedOver(_kind(info), 1, f"{uri}#{_shown(info.name)}")
        targets = _linked(_Guarded(stream, length), links) if links else {}
        for link in links:
            target = targets.get(posixpath.normpath(link.linkname))
            if target is None:
                yield Rejection(f"{uri}#{_shown(link.name)}", "broken link in tar")
            else:
                target.name = link.name
                yield _checked(target, uri=uri, stamp=stamp, names=names)


def _linked(stream: _Guarded, links: list[tarfile.TarInfo]) -> dict[str, tarfile.TarInfo]:
    """The files that the links name: a second pass, since a tar may have millions of members."""
    wanted = {posixpath.normpath(link.linkname) for link in links}
    found: dict[str, tarfile.TarInfo] = {}
    for info in _headers(stream):
        if not isinstance(info, str) and info.isreg():
            name = posixpath.normpath(info.name)
            if name in wanted:
                found.setdefault(name, info)
    return found


class _Guarded:
    """A stream that refuses reads and seeks that no valid tar needs."""

    def __init__(self, stream: IO[bytes], length: int) -> None:
        self._stream = stream
        self.length = length
        self.tell = stream.tell

    def read(self, wanted: int) -> bytes:
        if not 0 <= wanted <= _LONGEST_READ:
            raise tarfile.ReadError("absurd header")
        return self._stream.read(wanted)

    def seek(self, position: int) -> int:
        if not 0 <= position <= self.length:
            raise tarfile.ReadError("outside of the file")
        return self._stream.seek(position)


def _headers(stream: _Guarded) -> Iterator[tarfile.TarInfo | str]:
    """Members whose data are completely in the file; a reason at the end if the tar is damaged."""
    stream.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=stream, errorlevel=2)  # type: ignore[arg-type]
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else millions of them are kept
            if info.size < 0 or tar.offset <= info.offset:
                yield "damaged tar"
                return
            end = info.offset_data + info.size
            if info.isreg() and not info.issparse() and end > stream.length:
                yield "truncated tar"
                return
            yield info
        # The library takes an unreadable header for the end; only zeros are a real one.
        stream.seek(min(tar.offset, stream.length))
        block = stream.read(_BLOCK)
        if len(block) == _BLOCK and not any(block):
            return
        truncated = len(block) < _BLOCK
    except _DAMAGE:
        truncated = stream.tell() >= stream.length
    yield "truncated tar" if truncated else "damaged tar"


def _damage_at_start(block: bytes) -> str | None:
    if block.startswith(_COMPRESSED):
        return "compressed tar"
    if len(block) < _BLOCK:
        return "truncated tar"
    if not any(block):
        return None
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return "not a tar"
    return None


def _is_photo(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def _kind(info: tarfile.TarInfo) -> str:
    if info.isreg() or info.islnk():
        return posixpath.splitext(info.name)[1].lower() or "without suffix"
    return "symbolic link in tar" if info.issym() else "special file"


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def is_hidden(name: str) -> bool:
    """Whether a path inside a source is that of a hidden file, or is in a hidden folder: trash,
    thumbnails, what a Mac adds to its archives."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _checked(
    info: tarfile.TarInfo, *, uri: str, stamp: str, names: set[str]
) -> SourceFile | Rejection:
    if _UNSAFE.search(info.name):
        return Rejection(f"{uri}#{_shown(info.name)}", "unsafe name in tar")
    name = posixpath.normpath(info.name)
    member = f"{uri}#{name}"
    if name in names:
        # The offset distinguishes it from the one that is used.
        return Rejection(f"{member}@{info.offset_data}", "duplicate name in tar")
    names.add(name)
    if info.issparse():
        return Rejection(member, "sparse file in tar")
    if info.size > LARGEST_MEMBER:
        return Rejection(member, "too large")
    return SourceFile(member, info.size, stamp, uri, info.offset_data)

"""One image file of a source: where its bytes are, in a separate file or within an archive."""

from __future__ import annotations

from typing import NamedTuple

from datagen.io import storage


class SourceFile(NamedTuple):
    """One image file as listed, not opened; a NamedTuple, since a plan holds millions."""

    uri: str
    """Of a member of an archive, `<archive>#<name>`."""
    bytes: int
    stamp: str
    """Changes whenever the file (or its archive) does: modification time, or ETag."""
    container: str | None = None
    """The archive that holds it."""
    offset: int = 0
    """Where it begins in its container, bytes."""


class Rejection(NamedTuple):
    """One image left out of the dataset, or something in an archive that gives none."""

    uri: str
    reason: str
    """Short and stable, for counting; what is not, such as a number, follows in brackets."""


def kind_of(reason: str) -> str:
    """A reason without what follows in brackets."""
    return reason.partition(" (")[0]


class PassedOver(NamedTuple):
    """Files of one kind that are not among those that are read; nothing is wrong with them."""

    kind: str
    """Their suffix in small letters, or what they are."""
    files: int
    example: str
    """The URI of one of them."""


def read_photo(file: SourceFile) -> bytes:
    """The whole file."""
    if file.container is None:
        return storage.read_bytes(file.uri)
    return storage.read_range(file.container, start=file.offset, length=file.bytes)


def read_head(file: SourceFile, length: int) -> bytes:
    """The first bytes of the file, at most `length`."""
    length = min(length, file.bytes)
    return storage.read_range(file.container or file.uri, start=file.offset, length=length)


def is_readable(file: SourceFile) -> bool:
    """Whether its first byte can be read now."""
    try:
        read_head(file, 1)
    except storage.UnreadableError:
        return False
    return True

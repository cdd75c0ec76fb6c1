"""Turns listed files into photos of known size by their first bytes, each content once.

`HeaderReader` and `hash_contents` are plain picklable callables on a chunk of files, so that a
cluster can map them over chunks.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, TypeVar

from datagen.io import storage
from datagen.photos.decode import HeaderIncomplete, ImageRejected, read_header
from datagen.photos.source_file import Rejection, SourceFile, read_head, read_photo
from datagen.settings import FilterSettings, ImageSettings

HEAD_BYTES = 64 * 1024
CHUNK = 256  # files in one call
DUPLICATE = "duplicate"  # has the bytes of another file: left out, but nothing is wrong with it
_THREADS = 8

C = TypeVar("C")
R = TypeVar("R")
MapChunks = Callable[[Callable[[Sequence[C]], list[R]], Iterable[Sequence[C]]], Iterator[list[R]]]


class ScannedPhoto(NamedTuple):
    """A photo and what its first bytes say."""

    file: SourceFile
    width: int
    """Upright, pixels."""
    height: int
    head: bytes
    """Digest of the first bytes: equal files have equal heads."""


@dataclass(frozen=True)
class HeaderReader:
    """Reads the header of every file of a chunk, in its order."""

    images: ImageSettings
    filters: FilterSettings

    def __call__(self, chunk: Sequence[SourceFile]) -> list[ScannedPhoto | Rejection]:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(self._read, chunk))

    def _read(self, file: SourceFile) -> ScannedPhoto | Rejection:
        read = partial(read_header, size=file.bytes, images=self.images, filters=self.filters)
        try:
            head = read_head(file, HEAD_BYTES)
            try:
                width, height = read(head)
            except HeaderIncomplete:
                width, height = read(read_photo(file))
        except ImageRejected as error:
            return Rejection(uri=file.uri, reason=error.reason)
        except storage.UnreadableError as error:
            return Rejection(uri=file.uri, reason=error.reason)
        return ScannedPhoto(file, width, height, hashlib.blake2b(head, digest_size=16).digest())


def hash_contents(chunk: Sequence[SourceFile]) -> list[str]:
    """SHA-256 of every file of a chunk, in its order; empty for one that cannot be read now."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_hash, chunk))


def _hash(file: SourceFile) -> str:
    try:
        return hashlib.sha256(read_photo(file)).hexdigest()
    except storage.UnreadableError:
        return ""


def chunked(items: Iterable[C], size: int = CHUNK) -> Iterator[tuple[C, ...]]:
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


class ScanResult(NamedTuple):
    """New photos in the order of their URIs, known content at a new URI, and the rejected."""

    photos: list[ScannedPhoto]
    known: dict[str, SourceFile]
    """By SHA-256: the file whose content the dataset has already."""
    rejected: list[tuple[SourceFile, str]]


def scan_and_dedupe(
    files: Sequence[SourceFile],
    reader: HeaderReader,
    *,
    known_hashes: Mapping[str, int],
    map_chunks: MapChunks = map,
) -> ScanResult:
    """Reads all headers and drops exact duplicates.

    Only files of equal size and equal first bytes, or of the size of known content, are hashed.
    `known_hashes` are SHA-256 and bytes of content that the dataset has already.
    """
    scanned: list[ScannedPhoto] = []
    rejected: list[tuple[SourceFile, str]] = []
    for chunk, results in zip(chunked(files), map_chunks(reader, chunked(files)), strict=True):
        for file, result in zip(chunk, results, strict=True):
            if isinstance(result, Rejection):
                rejected.append((file, result.reason))
            else:
                scanned.append(result)
    hashes = _hashes(scanned, set(known_hashes.values()), map_chunks)
    photos: list[ScannedPhoto] = []
    known: dict[str, SourceFile] = {}
    seen: set[str] = set()
    for photo in scanned:
        digest = hashes.get(photo.file.uri)
        if digest == "":
            rejected.append((photo.file, "missing"))
        elif digest in seen:
            rejected.append((photo.file, DUPLICATE))
        elif digest is not None and digest in known_hashes:
            known[digest] = photo.file
        else:
            photos.append(photo)
        if digest is not None:
            seen.add(digest)
    return ScanResult(photos, known, rejected)


def _hashes(
    scanned: Sequence[ScannedPhoto], known_sizes: set[int], map_chunks: MapChunks
) -> dict[str, str]:
    """SHA-256 by URI of those that may be equal to another or to known content."""
    alike: dict[tuple[int, bytes], list[SourceFile]] = defaultdict(list)
    for photo in scanned:
        alike[photo.file.bytes, photo.head].append(photo.file)
    suspects = [
        file
        for (size, _), group in alike.items()
        if len(group) > 1 or size in known_sizes
        for file in group
    ]
    digests = chain.from_iterable(map_chunks(hash_contents, chunked(suspects)))
    return {file.uri: digest for file, digest in zip(suspects, digests, strict=True)}

"""The photos a dataset has been offered: `sources.jsonl`, and `rejected.jsonl` made of it.

Lets a later build find new photos with one listing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from datagen.dataset.layout import REJECTED, SOURCES
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.source_file import SourceFile, kind_of


@dataclass(frozen=True, slots=True)
class KnownPhoto:
    """A line of `sources.jsonl`."""

    uri: str
    bytes: int
    stamp: str
    """Empty once the file at the URI has changed: only samples of its old content remain. Empty
    too where the file could not be read."""
    sha256: str | None
    """Of a photo that has samples."""
    reason: str | None
    """Why the photo, or a variant of it, was left out."""


_LINE = TypeAdapter(KnownPhoto)


UNREADABLE = frozenset({"no permission", "archived", "missing", "link to itself", "path too long"})
"""Reasons of files whose content nobody has seen: they may be read later, without any change."""


def rejected_photo(file: SourceFile, reason: str) -> KnownPhoto:
    """Of a file that could not be read without a stamp, so that a later build looks again."""
    stamp = "" if kind_of(reason) in UNREADABLE else file.stamp
    return KnownPhoto(file.uri, file.bytes, stamp, sha256=None, reason=reason)


@dataclass(frozen=True)
class KnownPhotos:
    """In the order of URI and hash; one line for each content or rejected URI."""

    lines: tuple[KnownPhoto, ...] = ()

    @classmethod
    def of(cls, lines: Iterable[KnownPhoto]) -> KnownPhotos:
        """Of several lines with one content, or of one rejected URI, the last is kept."""
        found = {line.sha256 or f"rejected {line.uri}": line for line in lines}
        return cls(tuple(sorted(found.values(), key=lambda line: (line.uri, line.sha256 or ""))))

    @classmethod
    def read(cls, output: str) -> KnownPhotos:
        """Those of a dataset, empty where there is none; FlowmapsrError if the file is damaged."""
        uri = storage.join(output, SOURCES)
        if not storage.exists(uri):
            return cls()
        *lines, check = storage.read_bytes(uri).splitlines(keepends=True) or [b""]
        if check != _check(lines):
            raise FlowmapsrError(
                f"{uri}: damaged or cut off (its last line is not the checksum of the others); "
                "restore the file, or build the dataset again into another output"
            )
        try:
            return cls(tuple(_LINE.validate_json(line) for line in lines))
        except ValidationError as error:
            raise FlowmapsrError(f"{uri}: not a list of photos ({error}); restore it") from error

    def write(self, output: str) -> None:
        lines = [_LINE.dump_json(line) + b"\n" for line in self.lines]
        storage.write_bytes(storage.join(output, SOURCES), b"".join([*lines, _check(lines)]))

    def write_rejected(self, output: str) -> None:
        """`rejected.jsonl`: every image that was left out, in the order of its URI."""
        write_reasons(storage.join(output, REJECTED), self.rejected())

    def unreadable(self) -> set[str]:
        """URIs of what could not be read, by its listing or later."""
        return {line.uri for line in self.lines if not line.stamp and line.sha256 is None}

    def rejected(self) -> dict[str, str]:
        """Reason by URI."""
        return {line.uri: line.reason for line in self.lines if line.reason is not None}

    def hashes(self) -> dict[str, int]:
        """Size in bytes of each content that has samples, by SHA-256."""
        return {line.sha256: line.bytes for line in self.lines if line.sha256 is not None}

    def moved(self, found: Mapping[str, SourceFile]) -> KnownPhotos:
        """With the new URI and stamp of known content, by SHA-256."""
        return KnownPhotos.of(
            replace(line, uri=file.uri, bytes=file.bytes, stamp=file.stamp)
            if (file := found.get(line.sha256 or ""))
            else line
            for line in self.lines
        )

    def superseded(self, uris: Iterable[str]) -> KnownPhotos:
        """With new content at `uris`; rejections there are dropped."""
        changed = set(uris)
        kept = [line for line in self.lines if line.uri not in changed]
        former = [line for line in self.lines if line.uri in changed and line.sha256 is not None]
        return KnownPhotos.of([*(replace(line, stamp="") for line in former), *kept])


def write_reasons(uri: str, reasons: Mapping[str, str]) -> None:
    """A line for each image left out, in the order of its URI."""
    lines = [
        json.dumps({"uri": image, "reason": reason}, ensure_ascii=False).encode() + b"\n"
        for image, reason in sorted(reasons.items())
    ]
    storage.write_bytes(uri, b"".join(lines))


def _check(lines: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    return json.dumps({"lines": len(lines), "sha256": digest}).encode() + b"\n"

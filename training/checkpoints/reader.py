"""Verifies a checkpoint's files against their records and reads tensors from them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import ValidationError

from datagen.errors import FlowmapsrError, NotFoundError
from datagen.io import storage
from training.checkpoints.records import COMMIT, Commit, FileRecord
from training.checkpoints.tensor_files import PieceFile, PieceFiles

CHUNK = 64 << 20
"""Bytes that are read at once, for a digest or a local copy."""


class Damaged(FlowmapsrError):
    """A file of a checkpoint is not what was written; the message names the file and the damage."""


def read_commit(folder: str) -> Commit:
    """The commit of a checkpoint.

    Raises:
        Damaged: it is missing, truncated or altered.
        FlowmapsrError: it cannot be read.
    """
    uri = storage.join(folder, COMMIT)
    try:
        commit = Commit.model_validate_json(storage.read_bytes(uri))
    except NotFoundError as error:
        raise Damaged(f"{uri} is missing") from error
    except ValidationError as error:
        raise Damaged(f"{uri} is truncated, corrupt or of another version") from error
    if not commit.is_intact:
        raise Damaged(f"{uri} was altered")
    return commit


class SavedState:
    """The files of one checkpoint, read directly from a disk or from copies of files on S3."""

    def __init__(self, folder: str, commit: Commit) -> None:
        self.folder = folder
        self.commit = commit
        self._stack = ExitStack()
        self._copies: Path | None = None
        """Folder for copies from S3, removed on exit."""
        self._copied: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def faults(self, *, index: int, of: int) -> str:
        """Verifies the share of worker `index` of `of`; returns what is damaged, or nothing.

        With as many workers as wrote it, each verifies the files that it reads afterwards.
        """
        found = []
        for record in self.commit.files:
            if record.writer % of == index:
                try:
                    self._check(record)
                except Damaged as damage:
                    found.append(str(damage))
        return "; ".join(found)

    def network(self, name: str) -> PieceFiles:
        """The tensors of a network from all workers."""
        return PieceFiles(
            PieceFile(self._uri(record), partial(self._fetch, record))
            for record in self.commit.files
            if record.part == name
        )

    def text(self, name: str) -> bytes:
        """A small state that is not a tensor."""
        (record,) = [record for record in self.commit.files if record.part == name]
        return self._fetch(record).read_bytes()

    def _uri(self, record: FileRecord) -> str:
        return storage.join(self.folder, record.name)

    def _fetch(self, record: FileRecord) -> Path:
        """The file on this machine; one from S3 is copied once and verified while it is."""
        if not storage.is_remote(self.folder):
            return Path(self._uri(record))
        if record.name not in self._copied:
            self._check(record)
        return self._copied[record.name]

    def _check(self, record: FileRecord) -> None:
        uri = self._uri(record)
        size = storage.size(uri)
        if size != record.bytes:
            how = "is missing" if size is None else f"has {size} bytes instead of {record.bytes}"
            raise Damaged(f"{uri} {how}")
        digest = hashlib.sha256()
        with self._copy(record) as copy:
            for start in range(0, record.bytes, CHUNK):
                chunk = storage.read_range(uri, start=start, length=CHUNK)
                digest.update(chunk)
                copy.write(chunk)
        if digest.hexdigest() != record.sha256:
            raise Damaged(f"{uri} was altered: its SHA-256 is not the one it was written with")

    def _copy(self, record: FileRecord) -> IO[bytes]:
        """The file to copy to: a local one for a file on S3, else the null device."""
        if not storage.is_remote(self.folder):
            return open(os.devnull, "wb")
        if self._copies is None:
            self._copies = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._copied[record.name] = self._copies / record.name
        return self._copied[record.name].open("wb")

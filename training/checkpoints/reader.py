"""Verifies a checkpoint's files against their records and reads tensors from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError
from safetensors import safe_open

from datagen.errors import FlowmapsrError, NotFoundError
from datagen.io import storage
from datagen.samples.weights import not_finite
from training.checkpoints.records import COMMIT, Commit, FileRecord
from training.checkpoints.tensor_files import PieceFiles

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


@contextmanager
def open_checkpoint(folder: str, commit: Commit) -> Iterator[SavedState]:
    """The files of a checkpoint, with a folder for copies from S3 that is removed afterwards."""
    with TemporaryDirectory() if storage.is_remote(folder) else nullcontext() as copies:
        yield SavedState(folder, commit, None if copies is None else Path(copies))


@dataclass(frozen=True)
class SavedState:
    """The files of one checkpoint, read directly from a disk or from copies of files on S3."""

    folder: str
    commit: Commit
    copies: Path | None
    """Folder for the copies; None on a disk."""

    def faults(self, *, index: int, of: int) -> str:
        """Verifies the share of worker `index` of `of`; returns what is damaged, or nothing.

        With as many workers as wrote it, each verifies the files that it reads afterwards.
        """
        found = []
        for record in self.commit.files:
            try:
                if record.writer % of == index:
                    self._check(record)
                    self._check_values(record)
            except Damaged as damage:
                found.append(str(damage))
        return "; ".join(found)

    def _check_values(self, record: FileRecord) -> None:
        """What was written so is no damage of the file, but training cannot go on from it."""
        if not record.name.endswith(".safetensors"):
            return
        with safe_open(self._fetch(record), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping: it cannot be iterated)
                if found := not_finite(name, opened.get_tensor(name)):
                    raise Damaged(f"{self._uri(record)}: {found}: training had diverged")

    def network(self, name: str) -> PieceFiles:
        """The tensors of a network from all workers."""
        records = [record for record in self.commit.files if record.part == name]
        return PieceFiles({self._uri(record): partial(self._fetch, record) for record in records})

    def text(self, name: str) -> bytes:
        """A small state that is not a tensor."""
        (record,) = [record for record in self.commit.files if record.part == name]
        return self._fetch(record).read_bytes()

    def _uri(self, record: FileRecord) -> str:
        return storage.join(self.folder, record.name)

    def _fetch(self, record: FileRecord) -> Path:
        """The file on this machine; one from S3 is copied once and verified while it is."""
        if self.copies is None:
            return Path(self._uri(record))
        copy = self.copies / record.name
        if not copy.exists():
            self._check(record)
        return copy

    def _check(self, record: FileRecord) -> None:
        uri = self._uri(record)
        size = storage.size(uri)
        if size != record.bytes:
            how = "is missing" if size is None else f"has {size} bytes instead of {record.bytes}"
            raise Damaged(f"{uri} {how}")
        digest = hashlib.sha256()
        with open(os.devnull if self.copies is None else self.copies / record.name, "wb") as copy:
            for start in range(0, record.bytes, CHUNK):
                chunk = storage.read_range(uri, start=start, length=CHUNK)
                digest.update(chunk)
                copy.write(chunk)
        if digest.hexdigest() != record.sha256:
            raise Damaged(f"{uri} was altered: its SHA-256 is not the one it was written with")

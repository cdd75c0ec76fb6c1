"""Writes samples into WebDataset shards: equal samples give equal bytes."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import safetensors.numpy

from datagen.errors import FlowmapsrError
from datagen.io import storage

LATENTS = "latents.safetensors"
HQ_IMAGE = "hq.jpg"
META = "meta.json"
RESTORE = "restore it, or build the dataset again"
_BUFFER = 4 * 2**20


class DamagedShard(FlowmapsrError):
    """A shard that differs from what was written."""


@dataclass(frozen=True)
class ShardSample:
    """The members of one sample as stored in a shard."""

    key: str
    latents: bytes
    """Safetensors with `hq`, `lq`, `neg`: float16 (C, h, w)."""
    meta: bytes
    hq_jpeg: bytes | None
    """The HQ pixels; None where the recipe stores none."""


@dataclass(frozen=True)
class Latents:
    """float16 (C, h, w) each."""

    hq: np.ndarray
    lq: np.ndarray
    neg: np.ndarray

    def to_bytes(self) -> bytes:
        return safetensors.numpy.save({"hq": self.hq, "lq": self.lq, "neg": self.neg})

    @classmethod
    def from_bytes(cls, data: bytes) -> Latents:
        """Raises FlowmapsrError if the bytes are not such a safetensors file."""
        try:
            return cls(**safetensors.numpy.load(data))
        except (safetensors.SafetensorError, TypeError) as error:
            raise FlowmapsrError(f"{LATENTS} does not hold hq, lq and neg ({error})") from error


@dataclass(frozen=True)
class WrittenShard:
    """What was written, for the record."""

    sha256: str
    bytes: int
    num_samples: int


class _HashingFile(io.RawIOBase):
    """Hashes what is written, so that the shard is not read again for that."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self.size


class ShardWriter:
    """Streams samples into one tar; `open_shard` publishes it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._file = _HashingFile(stream)
        # webdataset's writer makes the same tar, but copies in pieces of 10 KB.
        self._tar = tarfile.TarFile(
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_BUFFER
        )
        self._count = 0

    def add(self, sample: ShardSample) -> None:
        members = {LATENTS: sample.latents, META: sample.meta}
        if sample.hq_jpeg is not None:
            members = {HQ_IMAGE: sample.hq_jpeg, **members}
        for name, content in members.items():
            header = tarfile.TarInfo(f"{sample.key}.{name}")  # time, user and group are 0
            header.size = len(content)
            self._tar.addfile(header, io.BytesIO(content))
        self._count += 1

    def close(self) -> WrittenShard:
        self._tar.close()
        return WrittenShard(
            sha256=self._file.digest.hexdigest(), bytes=self._file.size, num_samples=self._count
        )


@contextmanager
def open_shard(uri: str) -> Iterator[ShardWriter]:
    """A shard to fill and close in the block; it appears at `uri` at its end unless it raises."""
    with storage.open_atomic(uri) as stream:
        yield ShardWriter(stream)

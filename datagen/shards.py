"""Turns samples into the bytes of a WebDataset shard and back; equal samples give equal bytes.

Knows the members of a shard, not how they are made. The one module of datagen to know webdataset.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import safetensors.numpy

from datagen import storage
from datagen.errors import FlowmapsrError

LATENTS = "latents.safetensors"
HQ_IMAGE = "hq.jpg"
META = "meta.json"


@dataclass(frozen=True)
class StoredSample:
    """The members of one sample as they lie in the shard."""

    key: str
    latents: bytes
    """Safetensors with `hq`, `lq`, `neg`: float16 (C, h, w)."""
    meta: bytes
    hq: bytes | None
    """JPEG of the HQ pixels."""


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
        """Raises FlowmapsrError when the bytes are no such safetensors file."""
        try:
            return cls(**safetensors.numpy.load(data))
        except (safetensors.SafetensorError, TypeError) as error:
            raise FlowmapsrError(f"{LATENTS} does not hold hq, lq and neg ({error})") from error


@dataclass(frozen=True)
class WrittenShard:
    """What was written, as the record and the reader will check it."""

    sha256: str
    bytes: int
    num_samples: int


class _HashingFile(io.RawIOBase):
    """Passes writes on and keeps their hash, so that a shard is never read again to be hashed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._stream.write(data)


def write_shard(uri: str, samples: Iterable[StoredSample]) -> WrittenShard:
    """Streams the samples into a tar that appears at `uri` once all are in, not if one raises."""
    from webdataset import TarWriter

    count = 0
    with storage.open_atomic(uri) as stream:
        hashing = _HashingFile(stream)
        # Not as a context: closing on an exception would write a valid end after half the samples.
        writer = TarWriter(hashing, user="", group="", mtime=0, encoder=False)
        for sample in samples:
            members: dict[str, Any] = {
                "__key__": sample.key,
                LATENTS: sample.latents,
                META: sample.meta,
            }
            if sample.hq is not None:
                members[HQ_IMAGE] = sample.hq
            writer.write(members)
            count += 1
        writer.close()
    return WrittenShard(sha256=hashing.digest.hexdigest(), bytes=hashing.size, num_samples=count)


def read_shard(uri: str, sha256: str | None = None) -> list[dict[str, Any]]:
    """All samples of a shard in order, as webdataset gives them: `__key__` and the raw members.

    Raises FlowmapsrError naming the shard when it is missing, no tar, or (with `sha256`) altered.
    """
    import tarfile

    from webdataset.tariterators import group_by_keys, tar_file_expander

    data = storage.read_bytes(uri)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise FlowmapsrError(
            f"{uri}: this shard is not the one its manifest names (checksum differs); "
            "restore it, or build the dataset again"
        )
    try:
        members = tar_file_expander([{"url": uri, "stream": io.BytesIO(data)}])
        samples = list(group_by_keys(members))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise FlowmapsrError(f"{uri}: this is no readable shard ({error})") from error
    return [
        {name: value for name, value in sample.items() if name in _FIELDS} for sample in samples
    ]


_FIELDS = frozenset({"__key__", LATENTS, HQ_IMAGE, META})

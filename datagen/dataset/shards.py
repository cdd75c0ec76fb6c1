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
from datagen.settings import LATENT_NAMES

LATENTS = "latents.safetensors"
HQ_JPEG = "hq.jpg"
HQ_PNG = "hq.png"
LQ_PNG = "lq.png"
META = "meta.json"
RESTORE = "restore it, or build the dataset again"
_BUFFER = 4 * 2**20
_PNG_START = b"\x89PNG"


class DamagedShard(FlowmapsrError):
    """A shard that differs from what was written."""


@dataclass(frozen=True)
class ShardSample:
    """The members of one sample as stored in a shard; None for what its recipe does not ask for."""

    key: str
    latents: bytes | None
    """Safetensors, see `stored_latents`."""
    meta: bytes
    hq_image: bytes | None
    """The HQ pixels, a JPEG or a PNG."""
    lq_image: bytes | None = None
    """The LQ pixels, a PNG: at their own size or at that of the HQ."""

    def members(self) -> dict[str, bytes]:
        """By their names, in the order in which a shard holds them."""
        hq_name = HQ_PNG if self.hq_image and self.hq_image.startswith(_PNG_START) else HQ_JPEG
        found = {
            hq_name: self.hq_image,
            LATENTS: self.latents,
            LQ_PNG: self.lq_image,
            META: self.meta,
        }
        return {name: data for name, data in found.items() if data is not None}


Latents = dict[str, np.ndarray]
"""float16 (C, h, w) by name: those that the recipe asks for, in this order."""


def write_latents(latents: Latents) -> bytes:
    return safetensors.numpy.save(latents)


def stored_latents(sample: ShardSample) -> Latents:
    """Empty where it has none; FlowmapsrError if they cannot be read."""
    if sample.latents is None:
        return {}
    try:
        found = safetensors.numpy.load(sample.latents)
    except (safetensors.SafetensorError, TypeError) as error:
        raise FlowmapsrError(f"{LATENTS} cannot be read ({error})") from error
    if unknown := found.keys() - set(LATENT_NAMES):
        raise FlowmapsrError(f"{LATENTS} holds {min(unknown)}, not only hq, lq and neg")
    return {name: found[name] for name in LATENT_NAMES if name in found}


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
        for name, content in sample.members().items():
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

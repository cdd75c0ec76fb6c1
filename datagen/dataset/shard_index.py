"""Where the samples of a shard lie, found in the one pass that checks its checksum; and a sample
from its bytes.

With an index a sample is one short read at any place of a file that is never held in memory. Reads
the plain USTAR that `datagen/dataset/shards.py` writes; knows no files and no tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from datagen.dataset.shards import HQ_IMAGE, LATENTS, DamagedShard, check_digest

_BLOCK = 512
_EMPTY = bytes(_BLOCK)


@dataclass(frozen=True)
class Extent:
    """The bytes of one sample with all its members."""

    start: int
    length: int


@dataclass(frozen=True)
class ShardIndex:
    """8 bytes for each sample of a shard."""

    starts: np.ndarray
    """int64, (samples + 1,): where each sample begins, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def extent(self, index: int) -> Extent:
        start, end = self.starts[index : index + 2].tolist()
        return Extent(start, end - start)


@dataclass(frozen=True)
class SampleBytes:
    """The members of a sample that training reads, as they lie in a shard."""

    key: str
    latents: memoryview
    hq_jpeg: memoryview | None


@dataclass(frozen=True)
class _Header:
    key: str
    name: str
    size: int

    @property
    def blocks(self) -> int:
        """Bytes to the next header."""
        return _BLOCK + -(-self.size // _BLOCK) * _BLOCK


def index_shard(pieces: Iterable[bytes], *, uri: str, sha256: str) -> ShardIndex:
    """The index of a shard that comes in pieces, each a multiple of 512 bytes but the last.

    Raises DamagedShard when it is not the one that was written.
    """
    digest = hashlib.sha256()
    starts: list[int] = []
    position = header_at = 0
    key, ended = None, False
    for piece in pieces:
        digest.update(piece)
        while not ended and header_at + _BLOCK <= position + len(piece):
            block = piece[header_at - position : header_at - position + _BLOCK]
            ended = block == _EMPTY
            header = None if ended else _header(block, uri)
            if header is None or header.key != key:
                starts.append(header_at)
            if header is not None:
                key, header_at = header.key, header_at + header.blocks
        position += len(piece)
    check_digest(uri, digest.hexdigest(), sha256)
    if not ended:
        raise DamagedShard(f"{uri}: this is no readable shard (it has no end)")
    return ShardIndex(np.array(starts, dtype=np.int64))


def sample_bytes(data: memoryview, *, uri: str) -> SampleBytes:
    """The members of the sample whose extent `data` is; nothing is copied.

    Raises DamagedShard when they are not there.
    """
    members: dict[str, memoryview] = {}
    key, at = "", 0
    while at < len(data):
        header = _header(bytes(data[at : at + _BLOCK]), uri)
        members[header.name] = data[at + _BLOCK : at + _BLOCK + header.size]
        key, at = header.key, at + header.blocks
    if at != len(data) or LATENTS not in members:
        raise DamagedShard(f"{uri}: sample {key} has no whole {LATENTS}")
    return SampleBytes(key, members[LATENTS], members.get(HQ_IMAGE))


def _header(block: bytes, uri: str) -> _Header:
    try:
        key, dot, name = block[:100].rstrip(b"\0").decode("ascii").partition(".")
        if dot and block[257:262] == b"ustar":
            return _Header(key, name, int(block[124:135], 8))
    except ValueError:
        pass
    raise DamagedShard(f"{uri}: this is no readable shard (a member's header is damaged)")

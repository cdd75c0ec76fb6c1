"""Reads shards: where their samples are, found while the checksum is checked, and their members.

With an index a sample is one short read at any position of a file that is never held in memory.
These are the plain USTAR files of `datagen/dataset/shards.py`; foreign archives are read by
`datagen/photos/archives.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from datagen.dataset import shards
from datagen.dataset.shards import RESTORE, DamagedShard, ShardSample
from datagen.io import storage

_BLOCK = 512
_EMPTY = bytes(_BLOCK)


@dataclass(frozen=True)
class ShardIndex:
    """8 bytes for each sample of a shard."""

    starts: np.ndarray
    """int64, (samples + 1,): start of each sample, and end of the last one."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def extent(self, index: int) -> tuple[int, int]:
        """Start and length, in bytes, of a sample with all its members."""
        start, end = self.starts[index : index + 2].tolist()
        return start, end - start


class _Header(NamedTuple):
    key: str
    name: str
    size: int
    blocks: int
    """Bytes to the next header."""


def read_shard(uri: str, *, sha256: str | None = None) -> list[ShardSample]:
    """All samples of a shard, in order; `sha256` is its checksum, None accepts any.

    Raises:
        NotFoundError: it is missing.
        DamagedShard: it is not the one that was written, unreadable, or lacks a member.
    """
    data = storage.read_bytes(uri)
    index = index_shard([data], uri=uri, sha256=sha256)
    extents = (index.extent(number) for number in range(len(index)))
    return [sample_bytes(data[at : at + length], uri=uri) for at, length in extents]


def find_sample(stream: IO[bytes], key: str, *, uri: str) -> ShardSample | None:
    """The sample with a key, others being skipped; None without it, DamagedShard if unreadable."""
    start, at = None, 0
    while (block := stream.read(_BLOCK)) != _EMPTY:
        header = _header(block, uri)
        if start is None and header.key == key:
            start = at
        elif start is not None and header.key != key:
            break
        at += header.blocks
        stream.seek(at)
    if start is None:
        return None
    stream.seek(start)
    return sample_bytes(stream.read(at - start), uri=uri)


def index_shard(pieces: Iterable[bytes], *, uri: str, sha256: str | None) -> ShardIndex:
    """The index of a shard that comes in pieces, each a multiple of 512 bytes but the last.

    Raises:
        DamagedShard: it is not the one that was written.
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
    if sha256 is not None and digest.hexdigest() != sha256:
        raise DamagedShard(
            f"{uri}: this shard is not the one its manifest names (checksum differs); {RESTORE}"
        )
    if not ended:
        raise DamagedShard(f"{uri}: not a readable shard (it has no end); {RESTORE}")
    return ShardIndex(np.array(starts, dtype=np.int64))


def sample_bytes(data: bytes, *, uri: str) -> ShardSample:
    """The members of the sample whose extent `data` is; DamagedShard if one is missing."""
    members: dict[str, bytes] = {}
    key, at = "", 0
    while at < len(data):
        header = _header(data[at : at + _BLOCK], uri)
        if header.name in members:
            raise DamagedShard(f"{uri}: sample {header.key} has {header.name} twice; {RESTORE}")
        members[header.name] = data[at + _BLOCK : at + _BLOCK + header.size]
        key, at = header.key, at + header.blocks
    missing = {shards.META} - members.keys()
    if at != len(data) or missing:
        what = ", ".join(sorted(missing)) or "end"
        raise DamagedShard(f"{uri}: sample {key} has no {what}; {RESTORE}")
    return ShardSample(
        key,
        latents=members.get(shards.LATENTS),
        meta=members[shards.META],
        hq_image=members.get(shards.HQ_JPEG, members.get(shards.HQ_PNG)),
        lq_image=members.get(shards.LQ_PNG),
    )


def _header(block: bytes, uri: str) -> _Header:
    try:
        key, dot, name = block[:100].rstrip(b"\0").decode("ascii").partition(".")
        if dot and block[257:262] == b"ustar":
            size = int(block[124:135], 8)
            return _Header(key, name, size, _BLOCK + -(-size // _BLOCK) * _BLOCK)
    except ValueError:
        pass
    raise DamagedShard(f"{uri}: not a readable shard (a member's header is damaged); {RESTORE}")

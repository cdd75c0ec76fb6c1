"""Samples read by their offsets equal those of a whole shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datagen.dataset.shard_index import index_shard, read_shard, sample_bytes
from datagen.dataset.shards import DamagedShard, ShardSample, WrittenShard, write_latents
from datagen.io import storage
from tests.support.shards import write_shard


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, WrittenShard]:
    """Seven samples, some without pixels, with latents of any length."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(7):
        hq, lq, neg = rng.standard_normal((3, 4, number + 1, 3)).astype(np.float16)
        jpeg = rng.bytes(100 * number) if number % 3 else None
        latents = write_latents({"hq": hq, "lq": lq, "neg": neg})
        samples.append(ShardSample(f"{number:020x}-00", latents, b"{}", jpeg))
    path = tmp_path / "a.tar"
    return path, write_shard(str(path), samples)


@pytest.mark.parametrize("piece", [512, 1536, 4 << 20])
def test_every_sample_is_read_from_its_offset(shard: tuple[Path, WrittenShard], piece: int) -> None:
    path, written = shard
    data = path.read_bytes()
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    index = index_shard(pieces, uri=str(path), sha256=written.sha256)
    expected = read_shard(str(path))
    assert len(index) == len(expected) == 7
    for number, sample in enumerate(expected):
        start, length = index.extent(number)
        part = storage.read_range(str(path), start=start, length=length)
        assert sample_bytes(part, uri=str(path)) == sample


def test_an_altered_shard_is_named(
    shard: tuple[Path, WrittenShard],
) -> None:
    path, written = shard
    whole = path.read_bytes()
    flipped = whole[:700] + bytes([whole[700] ^ 1]) + whole[701:]
    for data in (flipped, whole[: len(whole) // 2], whole[:512], b""):
        with pytest.raises(DamagedShard, match=r"a\.tar"):
            index_shard([data], uri=str(path), sha256=written.sha256)


def test_bytes_changed_after_the_check_are_refused(
    shard: tuple[Path, WrittenShard],
) -> None:
    path, written = shard
    index = index_shard([path.read_bytes()], uri=str(path), sha256=written.sha256)
    start, length = index.extent(1)
    data = bytearray(path.read_bytes()[start : start + length])
    for damaged in (bytes(len(data)), bytes(data[:600]), bytes(data[:-512])):
        with pytest.raises(DamagedShard, match=r"a\.tar"):
            sample_bytes(damaged, uri=str(path))

"""A shard is a plain WebDataset tar whose bytes depend on its samples only."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import webdataset

from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, stored_latents, write_latents
from datagen.errors import FlowmapsrError
from tests.support.shards import write_shard


def _samples(count: int = 3) -> list[ShardSample]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        hq, lq, neg = rng.standard_normal((3, 4, 2, 3)).astype(np.float16)
        latents = write_latents({"hq": hq, "lq": lq, "neg": neg})
        jpeg = b"jpeg" if index else None
        found.append(ShardSample(f"{index:020x}-00", latents, meta=b"{}", hq_image=jpeg))
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "a" / "train-000000.tar")
    written = write_shard(uri, iter(_samples()))
    data = Path(uri).read_bytes()
    assert (written.sha256, written.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert written.num_samples == 3
    assert read_shard(uri, sha256=written.sha256) == _samples()


def test_bytes_depend_on_nothing_but_the_samples(tmp_path: Path) -> None:
    first = write_shard(str(tmp_path / "a.tar"), _samples())
    time.sleep(1.1)
    assert write_shard(str(tmp_path / "other.tar"), _samples()) == first


def test_plain_webdataset_reads_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.tar")
    write_shard(uri, _samples())
    found = list(webdataset.WebDataset(uri, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [sample.key for sample in _samples()]
    latents = safetensors.numpy.load(found[1]["latents.safetensors"])
    assert {name: value.shape for name, value in latents.items()} == dict.fromkeys(
        ("hq", "lq", "neg"), (4, 2, 3)
    )
    assert latents["lq"].dtype == np.float16
    assert found[1]["hq.jpg"] == b"jpeg" and found[1]["meta.json"] == b"{}"


def test_a_failing_sample_publishes_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield _samples()[0]
        raise RuntimeError("no more photos")

    with pytest.raises(RuntimeError):
        write_shard(str(tmp_path / "a.tar"), broken())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_altered_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    written = write_shard(str(path), _samples())
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(FlowmapsrError, match="a.tar.*checksum"):
        read_shard(str(path), sha256=written.sha256)
    path.write_bytes(data[:900])
    with pytest.raises(FlowmapsrError, match="a.tar.*not a readable shard"):
        read_shard(str(path))
    with pytest.raises(FlowmapsrError, match="missing.tar"):
        read_shard(str(tmp_path / "missing.tar"))


def test_latents_round_trip_and_refuse_other_content() -> None:
    sample, hq = _samples()[0], np.zeros((4, 2, 3), np.float16)
    latents = stored_latents(sample)
    assert list(latents) == ["hq", "lq", "neg"]
    assert write_latents(latents) == sample.latents
    assert stored_latents(replace(sample, latents=None)) == {}
    for data in (b"junk", safetensors.numpy.save({"hq": hq, "vae": hq})):
        with pytest.raises(FlowmapsrError, match="latents.safetensors"):
            stored_latents(replace(sample, latents=data))

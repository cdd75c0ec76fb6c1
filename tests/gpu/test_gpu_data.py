"""Codecs, datasets built on a GPU, and batches that are copied to one in the background."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import Latents, stored_latents
from datagen.samples.codecs import Codec, load_codec
from datagen.settings import AutoencoderSettings, CodecSettings, DctSettings
from tests.benchmarks.gpu.dataset import random_vae
from tests.support.distance import distance
from tests.support.tiny import dataset_recipe, write_photos
from training.data.batch_memory import BatchMemory
from training.data.bucket_mix import bucket_sizes, proportional_shares
from training.data.loader import BatchLoader, BatchReader, Source
from training.data.planned import Position
from training.data.schedule import Schedule
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.stage import BatchSize

SAME = 1e-4
ROUNDED = 0.2
"""Largest distance of an autoencoder with random weights in bf16."""
STORED = 2e-3
"""The same of latents that are stored as float16."""


@pytest.fixture
def vae(tmp_path: Path) -> AutoencoderSettings:
    return random_vae(tmp_path, tiny=True).model_copy(update={"precision": "fp32"})


def _both_ways(codec: Codec, device: torch.device) -> list[torch.Tensor]:
    """Latents, decoded pixels, and the gradient through the decoder."""
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(pixels.to(device)).requires_grad_()
    decoded = codec.decode(latents)
    decoded.square().mean().backward()
    assert latents.grad is not None
    assert latents.dtype == decoded.dtype == torch.float32
    assert latents.device.type == decoded.device.type == device.type
    return [latents, decoded, latents.grad]


def _assert_same(settings: CodecSettings, device: torch.device) -> None:
    own, cpus = load_codec(settings, str(device)), load_codec(settings)
    assert own.fingerprint == cpus.fingerprint
    expected = _both_ways(cpus, torch.device("cpu"))
    for found, other in zip(_both_ways(own, device), expected, strict=True):
        assert distance(found, other) < SAME


def test_the_dct_equals_the_cpus(device: torch.device) -> None:
    _assert_same(DctSettings(), device)


def test_an_autoencoder_equals_the_cpus(device: torch.device, vae: AutoencoderSettings) -> None:
    _assert_same(vae, device)


def test_bf16_rounds_an_autoencoder_only(device: torch.device, vae: AutoencoderSettings) -> None:
    rounded = load_codec(vae.model_copy(update={"precision": "bf16"}), str(device))
    precise = load_codec(vae)
    assert rounded.fingerprint == precise.fingerprint
    found = _both_ways(rounded, device)[:2]
    expected = _both_ways(precise, torch.device("cpu"))[:2]
    for one, other in zip(found, expected, strict=True):
        assert 0 < distance(one, other) < ROUNDED


def test_a_dataset_has_the_cpus_latents(
    device: torch.device, vae: AutoencoderSettings, tmp_path: Path
) -> None:
    """Built with threads; all but the codec is the CPU's in any case."""
    photos = write_photos(tmp_path / "photos", 1)

    def built(name: str, place: torch.device) -> dict[str, Latents]:
        recipe = dataset_recipe(photos, tmp_path / name).model_copy(update={"codec": vae})
        manifest = build_in_process(recipe, device=str(place), threads=2)
        shards = [str(tmp_path / name / shard.path) for shard in manifest.shards]
        samples = [sample for shard in shards for sample in read_shard(shard)]
        return {sample.key: stored_latents(sample) for sample in samples}

    found, expected = built("found", device), built("expected", torch.device("cpu"))
    assert found.keys() == expected.keys() and len(found) == 4
    for key, own in found.items():
        for name in ("hq", "lq", "neg"):
            one, other = (torch.from_numpy(each[name]) for each in (own, expected[key]))
            assert distance(one, other) < STORED, (key, name)


@pytest.fixture
def manifest(dataset: Path) -> Manifest:
    return load_manifest(str(dataset))


def test_pinned_batches_arrive_whole(
    device: torch.device, dataset: Path, manifest: Manifest
) -> None:
    """Copies that nothing waits for, of memory that the loader fills again."""
    shares = proportional_shares(bucket_sizes(manifest, "train"), BatchSize(2, 2))
    schedule = Schedule([manifest], shares, seed=0, shuffle_window_shards=1, split="train")
    fields = BatchFields(("hq", "lq", "neg"), hq_pixels=True)

    def loader(pin: bool) -> BatchLoader:
        reader = BatchReader(
            [Source(ShardStore(str(dataset)))],
            schedule,
            manifest.codec,
            fields,
            memory=BatchMemory(pin=pin),
        )
        return BatchLoader(reader, rank=0, world_size=1, threads=2)

    pinned = loader(device.type == "cuda").batches(Position())
    plain = loader(False).batches(Position())
    arrived, expected = [], []
    for _ in range(20):
        host = next(pinned)
        assert host.hq.is_pinned() == (device.type == "cuda")
        arrived.append(host.to(device))
        expected.append(next(plain))
    pinned.close()
    plain.close()
    for one, other in zip(arrived, expected, strict=True):
        assert one.keys == other.keys and one.hq.device.type == device.type
        assert torch.equal(one.hq.cpu(), other.hq.float())
        assert torch.equal(one.lq.cpu(), other.lq.float())
        assert one.hq_pixels is not None and other.hq_pixels is not None
        assert torch.equal(one.hq_pixels.cpu(), other.hq_pixels)

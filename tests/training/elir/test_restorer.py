"""The restorer: tiles that change nothing, noise from a seed, any size, any number of steps."""

from __future__ import annotations

import logging
import re
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import Tensor

import training.elir.tiled_networks
from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from tests.training.elir.small_networks import CHANNELS, pixels, small_networks
from training.elir.model_folder import ElirConfig
from training.elir.picture_memory import _ARRAYS
from training.elir.restorer import ElirRestorer
from training.elir.sampler import restore
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata
from training.inference.tiles.tiler import Tiler
from training.inference.upscaler import Upscaler
from training.monitoring.memory import PeakBytes, used_bytes
from training.settings.elir import ElirModelSettings, LatentConsistency


def restorer(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    max_memory: int | None = None,
    **objective: Any,
) -> ElirRestorer:
    config = ElirConfig(
        model=ElirModelSettings(),
        latent_channels=CHANNELS,
        objective=LatentConsistency(sigma_s=0.5, **objective),
        degradation=DegradationSettings(
            operations=[{"kind": "downscale"}, {"kind": "resize_back"}]  # type: ignore[list-item]
        ),
        stage="elir",
        recipe_digest="",
        dataset_digest="",
    )
    return ElirRestorer(small_networks(expand=None), config, dtype, seed, max_memory)


def lq(*size: int) -> Tensor:
    return 2 * pixels(1, 3, *size) - 1


@torch.no_grad()
def test_a_large_picture_is_restored_in_tiles_as_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y = lq(8 * 60, 8 * 28)
    drawn = torch.randn(CHANNELS, 60, 28, generator=torch.Generator().manual_seed(4))
    whole = restore(small_networks(expand=None), (y + 1) / 2, drawn[None].double(), 0.5, 3)
    monkeypatch.setattr(training.elir.tiled_networks, "TILE_PIXELS", 8 * 20)
    tiles = restorer(seed=4)(y, steps=3)
    torch.testing.assert_close(tiles, 2 * whole - 1, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 3])
def test_bands_of_rows_are_the_whole_picture(steps: int) -> None:
    upscaler = Upscaler(restorer(dtype=torch.float32), method="elir", tiler=Tiler(tile=160))
    pixels = cv2.resize(astronaut(), (420, 500))
    picture = Picture(pixels, None, False, Metadata())
    whole = upscaler.upscale_picture(picture, scale=1, steps=steps)
    bands = [band.rgb for band in upscaler.upscale_bands(picture, scale=1, steps=steps)]
    assert len(bands) > 1
    difference = np.abs(np.concatenate(bands).astype(int) - whole.rgb)
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_bands_too_are_refused_where_memory_does_not_hold_the_field() -> None:
    small = Upscaler(restorer(dtype=torch.float32, max_memory=1), method="elir")
    picture = Picture(np.zeros((1024, 1024, 3), np.uint8), None, False, Metadata())
    with pytest.raises(FlowmapsrError, match="sees all latents"):
        next(small.upscale_bands(picture, scale=1))


@torch.no_grad()
def test_noise_follows_from_the_seed_for_every_picture_of_a_batch() -> None:
    y = lq(32, 64)
    first = restorer()
    once = first(y, steps=3)
    assert torch.equal(first(y, steps=3), once)
    torch.testing.assert_close(restorer()(y.repeat(2, 1, 1, 1), steps=3), once.repeat(2, 1, 1, 1))
    assert not torch.allclose(restorer(seed=1)(y, steps=3), once)


@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_any_size_is_restored_in_the_trained_number_of_steps(size: tuple[int, int]) -> None:
    upscaler = Upscaler(restorer(dtype=torch.float32, segments=5), method="elir")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    restored = upscaler.upscale(image, scale=1)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    assert np.array_equal(restored, upscaler.upscale(image, scale=1, steps=5))


@torch.no_grad()
def test_another_number_of_steps_is_told_once_with_its_meaning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained = restorer()
    with caplog.at_level(logging.WARNING):
        for steps in (3, 1, 1, 25):
            trained(lq(32, 32), steps=steps)
        restorer(flow="flow_matching")(lq(32, 32), steps=25)
    few, many = caplog.messages
    assert few.startswith("1 steps, but the model was trained for 3 segments")
    assert "more blurred; use 3" in few and "do not get better; use 3" in many


def test_a_picture_larger_than_memory_is_refused_with_the_size_that_fits() -> None:
    limit = used_bytes(torch.device("cpu")) + 600_000_000
    upscaler = Upscaler(restorer(dtype=torch.float32, max_memory=limit), method="elir")
    with pytest.raises(FlowmapsrError, match=r"a result of 8192x4096 pixels takes \d") as refused:
        upscaler.upscale(np.zeros((4096, 8192, 3), dtype=np.uint8), scale=1)
    match = re.search(r"up to (\d+)x\1 pixels fit", str(refused.value))
    assert match and 512 <= int(match[1]) < 4096

    none = Upscaler(restorer(dtype=torch.float32, max_memory=1), method="elir")
    with pytest.raises(FlowmapsrError, match=r"no picture fits"):
        none.upscale(np.zeros((1024, 1024, 3), dtype=np.uint8), scale=1)


@torch.no_grad()
def test_what_is_told_of_memory_is_what_a_restoration_takes() -> None:
    own = restorer(dtype=torch.float32)
    y = lq(768, 768).float()
    with PeakBytes() as measured:
        own(y, steps=3)
    told = own._memory._bytes(768 * 768, _ARRAYS)
    assert measured.peak < told < 2 * measured.peak

"""A codec on pictures of any size: what is foretold, its tiles, and memory that is full."""

from __future__ import annotations

import logging
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.samples.autoencoder_codec import AutoencoderCodec
from datagen.samples.codecs import Codec, DctCodec
from datagen.settings import AutoencoderSettings
from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Box
from training.flowmap import fitting_codec
from training.flowmap.fitting_codec import FittingCodec
from training.monitoring.memory import PeakBytes, foretold_bytes

CPU = torch.device("cpu")
SPARE = 1.3


@pytest.fixture
def codec(tmp_path: Path) -> Codec:
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    ).save_pretrained(tmp_path)
    return AutoencoderCodec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))


def picture(height: int, width: int) -> Tensor:
    return 2 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) - 1


@torch.inference_mode()
def test_what_is_foretold_is_what_a_pass_takes(codec: Codec) -> None:
    x = picture(64, 96)
    foretold = foretold_bytes(codec.encode, x.shape, x.dtype, CPU)
    with PeakBytes() as measured:
        codec.encode(x.clone())
    own = x.numel() * x.element_size()  # the input is held by who calls
    assert foretold == pytest.approx(SPARE * measured.peak, abs=SPARE * own)


@torch.inference_mode()
def test_a_picture_that_does_not_fit_is_done_in_tiles_that_do(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting_codec, "_SIDES", (256, 128, 64, 32))
    monkeypatch.setattr(fitting_codec, "_AROUND", 16)
    monkeypatch.setattr(fitting_codec, "used_bytes", lambda device: 0)
    latents = torch.randn(1, 4, 48, 32, generator=torch.Generator().manual_seed(0))
    with PeakBytes() as measured:
        whole = codec.decode(latents)
    budget = 6 * measured.peak // 10
    fitting = FittingCodec(codec, CPU, max_memory=budget)
    with PeakBytes() as tiled:
        decoded = fitting.decode(latents)
    assert tiled.peak < budget
    torch.testing.assert_close(decoded, whole, rtol=1e-4, atol=1e-4)
    large = FittingCodec(codec, CPU, max_memory=10 * budget)
    assert torch.equal(large.decode(latents), whole)


class _Full(DctCodec):
    """Memory for pictures or tiles of a limited side only."""

    largest = 0

    def decode(
        self, latents: Tensor, tiles: CodecTiles | None = None, inside: Box | None = None
    ) -> Tensor:
        if (max(latents.shape[-2:]) if tiles is None else tiles.side) > self.largest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().decode(latents, tiles, inside)


@pytest.fixture
def wrongly_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting_codec, "foretold_bytes", lambda *_: 0.0)


@pytest.mark.usefixtures("wrongly_foretold")
def test_where_memory_is_full_tiles_are_halved_and_said(caplog: pytest.LogCaptureFixture) -> None:
    codec = _Full()
    latents = torch.randn(1, codec.channels, 10, 120)
    codec.largest = 40
    with caplog.at_level(logging.WARNING):
        decoded = FittingCodec(codec, CPU).decode(latents)
    assert [record.message.split()[-2] for record in caplog.records] == ["480", "256"]
    torch.testing.assert_close(decoded, DctCodec().decode(latents))


@pytest.mark.usefixtures("wrongly_foretold")
def test_where_not_even_the_smallest_tile_fits_it_is_said() -> None:
    with pytest.raises(FlowmapsrError, match="memory is too small for the codec's tiles of 256"):
        FittingCodec(_Full(), CPU).decode(torch.randn(1, 192, 10, 120))


def test_a_tile_that_is_asked_for_is_taken() -> None:
    fitting = FittingCodec(DctCodec(), CPU, tile=256)
    assert fitting._tiles(DctCodec().decode, torch.empty(1, 192, 32, 33), 1) == CodecTiles(32)
    assert fitting._tiles(DctCodec().decode, torch.empty(1, 192, 32, 32), 1) is None

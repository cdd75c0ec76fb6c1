"""Pictures in bands of rows through an autoencoder with attention: as the whole picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from datagen.settings import AutoencoderSettings
from tests.support.models import saved_model, tiny_autoencoder
from training.inference import bands
from training.inference.bands import BandRestorer
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata
from training.inference.tiles.tiler import Tiler
from training.inference.upscaler import Upscaler
from training.settings.model import ModelSettings

PHOTO = Picture(
    cv2.resize(astronaut(), (112, 144), interpolation=cv2.INTER_AREA), None, False, Metadata()
)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderSettings:
    return tiny_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.mark.parametrize("heads", [0, 1])
def test_bands_are_what_tiles_of_the_whole_picture_are(
    tmp_path: Path, codec: AutoencoderSettings, heads: int
) -> None:
    """With a network of convolutions, and with one that attends."""
    settings = ModelSettings(
        block_channels=(16, 16),
        layers_per_block=1,
        transformer_layers=(0, heads),
        attention_heads=(2, 2),
        norm_groups=4,
    )
    model = saved_model(tmp_path / "model", settings, trained=True, codec=codec)
    upscaler = Upscaler.from_pretrained(model, device="cpu", tile=256)
    whole = upscaler.upscale_picture(PHOTO, scale=4, steps=2)
    found = [band.rgb for band in upscaler.upscale_bands(PHOTO, scale=4, steps=2)]
    assert len(found) > 1
    assert peak_signal_noise_ratio(whole.rgb, np.concatenate(found)) >= 60


def test_the_codec_alone_gives_the_picture_in_one_piece(
    tmp_path: Path, codec: AutoencoderSettings, tiny_model: ModelSettings
) -> None:
    model = saved_model(tmp_path / "model", tiny_model, trained=False, codec=codec)
    whole = Upscaler.from_pretrained(model, device="cpu").upscale_picture(PHOTO, scale=4, steps=1)
    tiled = Upscaler.from_pretrained(model, device="cpu", tile=256)
    found = [band.rgb for band in tiled.upscale_bands(PHOTO, scale=4, steps=1)]
    assert len(found) > 1
    # PyTorch's group norm of the whole rounds more than the tiles do.
    assert peak_signal_noise_ratio(whole.rgb, np.concatenate(found)) >= 55


@pytest.mark.parametrize(("memory", "pixels"), [(8e9, 1024), (1.2e9, 600), (1e8, 256)])
def test_a_row_of_the_codecs_tiles_takes_half_of_the_memory_at_most(
    tmp_path: Path, tiny_model: ModelSettings, memory: float, pixels: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bands, "used_bytes", lambda device: 0)
    monkeypatch.setattr(bands, "free_bytes", lambda device: 10**12)
    restorer = Upscaler.from_pretrained(
        saved_model(tmp_path / "model", tiny_model, trained=False), device="cpu"
    ).restorer
    parts, tiler = restorer.parts(), Tiler(max_memory=int(memory))
    assert parts is not None
    assert BandRestorer(parts, restorer.device, tiler)._tiles(10_000).side == pixels // 8

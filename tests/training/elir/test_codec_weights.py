"""A tiny autoencoder of diffusers becomes ELIR's codec, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from datagen.errors import FlowmapsrError
from training.elir.initial import codec_networks
from training.settings.elir import TinyAutoencoder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, ""),
        ({"scaling_factor": 0.5}, "scaling_factor': 0.5.*as they are .*name another, such as"),
        ({"num_decoder_blocks": (2, 2, 2, 1)}, "its decoder is no tiny autoencoder of TAESD3's"),
    ],
)
def test_a_tiny_autoencoder_is_taken_as_it_is_or_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    theirs = AutoencoderTiny(latent_channels=16, **{"scaling_factor": 1.0, **config})
    theirs.save_pretrained(tmp_path)
    settings = TinyAutoencoder(source=str(tmp_path))
    if message:
        with pytest.raises(FlowmapsrError, match=f"model.codec.source={tmp_path}: .*{message}"):
            codec_networks(settings)
        return
    codec, pixels = codec_networks(settings), torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        latents = theirs.encode(2 * pixels - 1).latents
        torch.testing.assert_close(codec.encoder(pixels), latents, atol=1e-5, rtol=0)
        decoded = theirs.decode(latents).sample
        torch.testing.assert_close(2 * codec.decoder(latents) - 1, decoded, atol=1e-4, rtol=0)

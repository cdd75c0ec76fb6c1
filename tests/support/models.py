"""Model folders for tests of inference."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch

from datagen.degradation.settings import DegradationSettings
from datagen.samples.codecs import load_codec
from datagen.settings import AutoencoderSettings, CodecSettings, DctSettings
from training.flowmap.model_folder import FlowMapConfig, save_model
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import STAND_IN, stand_in
from training.settings.model import ModelSettings

DCT: CodecSettings = DctSettings()


def saved_model(
    folder: Path, settings: ModelSettings, *, trained: bool, codec: CodecSettings = DCT
) -> Path:
    """A model on latents of a codec; one that is not trained returns its input."""
    torch.manual_seed(0)
    loaded = load_codec(codec)
    net = FlowMapNet(settings, latent_channels=loaded.channels)
    if trained:
        torch.nn.init.normal_(net.unet.conv_out.weight, std=0.02)
    config = FlowMapConfig(
        model=settings,
        latent_channels=loaded.channels,
        codec=codec,
        codec_fingerprint=loaded.fingerprint,
        prompt_embeddings=STAND_IN,
        degradation=DegradationSettings(scale=(1, 8)),
        stage="warmup",
        recipe_digest="0",
        dataset_digest="0",
    )
    save_model(folder, net, config, prompts=stand_in(settings.prompt_channels))
    return folder


def tiny_autoencoder(folder: Path) -> AutoencoderSettings:
    """An `AutoencoderKL` of random weights, with group norms and attention as large ones have."""
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    ).save_pretrained(folder)
    return AutoencoderSettings(kind="autoencoder_kl", source=str(folder))

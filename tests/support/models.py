"""Model folders for tests of inference."""

from __future__ import annotations

from pathlib import Path

import torch

from datagen.degradation.settings import DegradationSettings
from datagen.samples.codecs import load_codec
from datagen.settings import DctSettings
from training.flowmap.model_folder import FlowMapConfig, save_model
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import STAND_IN, stand_in
from training.settings.model import ModelSettings


def saved_model(folder: Path, settings: ModelSettings, *, trained: bool) -> Path:
    """A model on latents of `dct8`; one that is not trained returns its input."""
    torch.manual_seed(0)
    net = FlowMapNet(settings, latent_channels=192)
    if trained:
        torch.nn.init.normal_(net.unet.conv_out.weight, std=0.02)
    config = FlowMapConfig(
        model=settings,
        latent_channels=192,
        codec=DctSettings(),
        codec_fingerprint=load_codec(DctSettings()).fingerprint,
        prompt_embeddings=STAND_IN,
        degradation=DegradationSettings(scale=(1, 8)),
        stage="warmup",
        recipe_digest="0",
        dataset_digest="0",
    )
    save_model(folder, net, config, prompts=stand_in(settings.prompt_channels))
    return folder

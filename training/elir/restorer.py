"""A trained ELIR model that restores pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from training.elir.model_folder import PARTS, ElirConfig
from training.elir.network import LATENT_MULTIPLE, Networks
from training.elir.sampler import restore

NOISE_SEED = 0


class ElirRestorer:
    """Estimates the mean HQ latents of an LQ image, and carries them to likely ones."""

    def __init__(self, networks: Networks, config: ElirConfig, dtype: torch.dtype) -> None:
        self.networks = networks
        self.config = config
        for part in PARTS:
            getattr(networks, part).to(dtype)
        self.device = next(networks.field.parameters()).device
        self.size_multiple = LATENT_MULTIPLE * config.model.downsample

    def __call__(self, lq: Tensor, *, steps: int) -> Tensor:
        """As `Restorer`; the noise of an image depends on its size alone."""
        down = self.config.model.downsample
        shape = (self.config.latent_channels, *(side // down for side in lq.shape[2:]))
        generator = torch.Generator().manual_seed(NOISE_SEED)
        noise = torch.randn(shape, generator=generator).to(lq).expand(len(lq), *shape)
        objective = self.config.objective
        restored = restore(
            self.networks,
            (lq + 1) / 2,
            noise,
            objective.sigma_s if self.config.model.has_field else 0.0,
            steps if self.config.model.has_field else 0,
        )
        return 2 * restored - 1

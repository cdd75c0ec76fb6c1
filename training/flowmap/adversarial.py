"""The adversarial part of a stage: a patch discriminator on latents, and the losses on its scores.

Only differences of scores mean anything. They have any shape, and every patch counts alike.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.flowmap.interpolant import Velocity, flow_map
from training.settings.adversarial import DiscriminatorSettings


class Discriminator(nn.Module):
    """Convolutions of kernel 4, GroupNorm but for the first, SiLU, one channel of scores: after
    pix2pix.

    2.77 M parameters with the default settings on latents of 4 channels.
    """

    def __init__(self, settings: DiscriminatorSettings, *, latent_channels: int) -> None:
        super().__init__()
        convolution = partial(nn.Conv2d, kernel_size=4, padding=1)
        layers: list[nn.Module] = []
        width = latent_channels
        for index, channels in enumerate(settings.channels):
            layers.append(convolution(width, channels, stride=settings.strides[index]))
            if index:
                layers.append(nn.GroupNorm(settings.norm_groups, channels))
            layers.append(nn.SiLU())
            width = channels
        # The loss is blind to a constant, so a last bias would get only rounding errors as its
        # gradient, and Adam would walk them.
        score = convolution(width, 1, stride=settings.strides[-1], bias=False)
        self.layers = nn.Sequential(*layers, score)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> scores (B, 1, h', w'), float32 whatever the weights are."""
        dtype = next(self.parameters()).dtype
        return self.layers(latents.to(dtype)).float()


def generator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """E softplus(D(x0) - D(x0_hat)): the generator's relativistic pairing loss (RPGAN)."""
    return functional.softplus(real - fake).mean()


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """E softplus(D(x0_hat) - D(x0)): the discriminator's relativistic pairing loss (RPGAN)."""
    return functional.softplus(fake - real).mean()


def two_step_prediction(u: Velocity, x1: Tensor) -> Tensor:
    """x0_hat of LQ latents x1 (B, ...) by the steps 1 -> 1/2 -> 0 (eq. 13 with NFE 2).

    Two evaluations of u, the first without gradient: the state at 1/2 is detached.
    """
    one, half, zero = (x1.new_full((len(x1),), time) for time in (1.0, 0.5, 0.0))
    with torch.no_grad():
        middle = flow_map(u, x1, one, half)
    return flow_map(u, middle, half, zero)

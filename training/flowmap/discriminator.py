"""A patch discriminator on latents, after pix2pix: latents to one score for each patch.

Only differences of its scores mean anything.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from training.settings.adversarial import DiscriminatorSettings


class Discriminator(nn.Module):
    """Convolutions of kernel 4, GroupNorm but for the first, SiLU, one channel of scores.

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

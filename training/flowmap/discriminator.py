"""A patch discriminator on latents, after pix2pix: latents to one score for each patch.

Only differences of its scores mean anything.
"""

from __future__ import annotations

from torch import Tensor, nn

from training.settings.adversarial import DiscriminatorSettings


class Discriminator(nn.Module):
    """Convolutions of kernel 4, GroupNorm but for the first, SiLU, one channel of scores.

    2.77 M parameters with the default settings on latents of 4 channels.
    """

    def __init__(self, settings: DiscriminatorSettings, *, latent_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = latent_channels
        for index, channels in enumerate(settings.channels):
            layers.append(_convolution(width, channels, settings.strides[index]))
            if index:
                layers.append(nn.GroupNorm(settings.norm_groups, channels))
            layers.append(nn.SiLU())
            width = channels
        # The loss is blind to a constant, so a last bias would get only rounding errors as its
        # gradient, and Adam would walk them.
        score = nn.Conv2d(
            width, 1, kernel_size=4, stride=settings.strides[-1], padding=1, bias=False
        )
        self.layers = nn.Sequential(*layers, score)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> scores (B, 1, h', w'), float32 whatever the weights are."""
        dtype = next(self.parameters()).dtype
        return self.layers(latents.to(dtype)).float()


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride, padding=1)

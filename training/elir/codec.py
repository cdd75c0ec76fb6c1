"""Pixels in [0, 1] to latents and back, as networks that can be trained: TAESD3's tiny autoencoder,
and a block DCT that needs no weights.

TAESD3's layers have the names and the weights of diffusers' `AutoencoderTiny`, which itself takes
and gives [-1, 1].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from datagen.samples.codecs import DctCodec

LATENT_CHANNELS = 16
WIDTH = 64
LATENT_BOUND = 3.0
"""The decoder holds latents softly within plus and minus this."""
TINY_REACH = 19
"""Latents around one that its pixels, or it itself, depend on."""


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU between, and the input added before the last ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """(B, 3, H, W) in [0, 1] -> latents (B, C, H/8, W/8)."""

    def __init__(self, channels: int = LATENT_CHANNELS, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), TinyBlock(width)]
        for _ in range(3):
            layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(width) for _ in range(3)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return in_weights_dtype(self.layers, x)


class TinyDecoder(nn.Module):
    """Latents (B, C, h, w) -> (B, 3, 8h, 8w), about [0, 1], not clamped."""

    def __init__(self, channels: int = LATENT_CHANNELS, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [TinyBlock(width) for _ in range(3)]
            layers.append(nn.Upsample(scale_factor=2))
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers, TinyBlock(width), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        bounded = LATENT_BOUND * torch.tanh(z / LATENT_BOUND)
        return in_weights_dtype(self.layers, bounded)


class DctEncoder(nn.Module):
    """(B, 3, H, W) in [0, 1] -> latents of `DctCodec` (B, 3n², H/n, W/n), by a convolution with a
    stride of n."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * block**2, block, stride=block)
        basis = _dct_basis(block)
        with torch.no_grad():
            # The codec's pixels are 2x - 1.
            self.conv.weight.copy_(2 * basis)
            self.conv.bias.copy_(-basis.sum(dim=(1, 2, 3)))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return in_weights_dtype(self.conv, x)


class DctDecoder(nn.Module):
    """Latents of `DctCodec` (B, 3n², h, w) -> pixels (B, 3, nh, nw), not clamped."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(3 * block**2, 3, block, stride=block)
        with torch.no_grad():
            self.conv.weight.copy_(_dct_basis(block) / 2)
            self.conv.bias.fill_(0.5)  # type: ignore[union-attr]

    def forward(self, z: Tensor) -> Tensor:
        return in_weights_dtype(self.conv, z)


@dataclass(frozen=True)
class CodecNetworks:
    """Both halves of a codec, which it freezes, and what restoring has to know of them."""

    encoder: nn.Module
    decoder: nn.Module
    channels: int
    downsample: int
    """Side of a latent in pixels."""
    reach: int
    """Latents around one that decide about it, in either direction."""

    def __post_init__(self) -> None:
        for network in (self.encoder, self.decoder):
            network.requires_grad_(False)


def tiny_codec(channels: int = LATENT_CHANNELS, width: int = WIDTH) -> CodecNetworks:
    """TAESD3's architecture with random weights."""
    encoder, decoder = TinyEncoder(channels, width), TinyDecoder(channels, width)
    return CodecNetworks(encoder, decoder, channels, downsample=8, reach=TINY_REACH)


def dct_codec(block: int = 8) -> CodecNetworks:
    """`DctCodec` as networks: lossless."""
    encoder, decoder = DctEncoder(block), DctDecoder(block)
    return CodecNetworks(encoder, decoder, 3 * block**2, downsample=block, reach=0)


def trainable_copy(encoder: nn.Module, gain: float = 1.0) -> nn.Module:
    """A copy to be trained, whose latents are `gain` times those of the original."""
    copied = copy.deepcopy(encoder).requires_grad_(True)
    convolutions = [m for m in copied.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for last in convolutions[-1:]:
            for parameter in last.parameters():
                parameter.mul_(gain)
    return copied


def in_weights_dtype(network: nn.Module, x: Tensor) -> Tensor:
    """The network of `x` in the precision of its weights; the result in that of `x`."""
    return network(x.to(next(network.parameters()).dtype)).to(x.dtype)


def _dct_basis(block: int) -> Tensor:
    """(3n², 3, n, n): the picture of each coefficient."""
    codec = DctCodec(block)
    return codec.decode(torch.eye(codec.channels)[..., None, None])

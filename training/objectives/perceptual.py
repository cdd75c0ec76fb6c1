"""Pixel-space regularisers: lambda(t) * distance(D(predicted x0), HQ) on one random patch.

Knows the codec only through `decode` and `downsample`. A distance whose weights are missing is an
error, never replaced by another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from datagen.codecs import Codec
from datagen.errors import FlowmapsrError
from training.settings import Charbonnier, Lpips, NoPerceptual, PerceptualSettings

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Inputs in [-1, 1] to ImageNet-normalised ones: the constants of LPIPS version 0.1.
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)


class Distance(Protocol):
    """(B, 3, H, W) twice, in [-1, 1] -> distance (B,)."""

    def __call__(self, prediction: Tensor, original: Tensor) -> Tensor: ...


class PatchRegulariser:
    """lambda(t) * distance on the same random patch of decoded prediction and HQ pixels."""

    def __init__(self, distance: Distance, codec: Codec, *, strength: float, patch: int) -> None:
        self.distance = distance
        self.codec = codec
        self.strength = strength
        self.patch = patch

    def __call__(self, x0: Tensor, pixels: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """lambda(t) * distance, (B,), with lambda(t) = strength * (1 - t).

        Args:
            x0: predicted HQ latents (B, C, h, w).
            pixels: HQ pixels (B, 3, H, W), uint8, H = downsample * h.
            t: times (B,).
            generator: draws the patch's place.
        """
        factor = self.codec.downsample
        height, width = x0.shape[-2:]
        side_h, side_w = (min(n, max(1, self.patch // factor)) for n in (height, width))
        top = _draw(height - side_h, generator)
        left = _draw(width - side_w, generator)
        prediction = self.codec.decode(x0[..., top : top + side_h, left : left + side_w])
        window = pixels[
            ...,
            factor * top : factor * (top + side_h),
            factor * left : factor * (left + side_w),
        ]
        original = window.to(prediction) / 127.5 - 1
        return self.strength * (1 - t) * self.distance(prediction, original)


def _draw(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound + 1, (), generator=generator, device=generator.device))


class CharbonnierDistance:
    """mean sqrt((a - b)^2 + epsilon^2) - epsilon: a smooth L1, 0 at equality."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, prediction: Tensor, original: Tensor) -> Tensor:
        squared = (prediction - original).square() + self.epsilon**2
        return squared.sqrt().mean(dim=(1, 2, 3)) - self.epsilon


class LpipsDistance(nn.Module):
    """LPIPS 0.1 on VGG-16 (Zhang et al., 2018): weighted squared distance of unit-normalised
    features."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = nn.ModuleList()
        channels = 3
        for index, widths in enumerate(VGG16_WIDTHS):
            layers: list[nn.Module] = [] if index == 0 else [nn.MaxPool2d(2)]
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.slices.append(nn.Sequential(*layers))
        self.linears = nn.ModuleList(
            nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in VGG16_WIDTHS
        )
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, original: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [-1, 1] -> (B,)."""
        shift = prediction.new_tensor(LPIPS_SHIFT).view(1, 3, 1, 1)
        scale = prediction.new_tensor(LPIPS_SCALE).view(1, 3, 1, 1)
        a, b = (prediction - shift) / scale, (original - shift) / scale
        distance = prediction.new_zeros(len(prediction))
        for features, linear in zip(self.slices, self.linears, strict=True):
            a, b = features(a), features(b)
            difference = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
            distance = distance + linear(difference.square()).mean(dim=(1, 2, 3))
        return distance

    @classmethod
    def from_file(cls, path: str) -> LpipsDistance:
        """Loads safetensors named as this module's parameters; says which setting to mend."""
        if not Path(path).is_file():
            raise FlowmapsrError(
                f"perceptual.weights: there is no file {path}; give a safetensors file with "
                "the VGG-16 "
                "features and LPIPS layers, or set perceptual.kind to charbonnier or none"
            )
        distance = cls()
        try:
            distance.load_state_dict(safetensors.torch.load_file(path))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise FlowmapsrError(
                f"perceptual.weights: {path} does not hold LPIPS weights: {error}"
            ) from error
        return distance


def load_regulariser(
    settings: PerceptualSettings, codec: Codec, device: torch.device
) -> PatchRegulariser | None:
    """The regulariser the recipe names; None for `none`."""
    match settings:
        case NoPerceptual():
            return None
        case Charbonnier():
            distance: Distance = CharbonnierDistance(settings.epsilon)
        case Lpips():
            distance = LpipsDistance.from_file(settings.weights).to(device)
    return PatchRegulariser(distance, codec, strength=settings.strength, patch=settings.patch)

"""Pixel-space losses: lambda(t) * distance(D(predicted x0), HQ) on one random patch.

Missing weights of a distance are an error; another distance never replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from datagen.samples.codecs import Codec
from training.losses.lpips import LpipsDistance, lpips_weights
from training.settings.objective import Charbonnier, Lpips, NoPerceptual, PerceptualSettings

Distance = Callable[[Tensor, Tensor], Tensor]
"""Prediction and original (B, 3, H, W), in [-1, 1] -> distance (B,)."""


@dataclass(frozen=True)
class PatchPerceptualLoss:
    """lambda(t) * distance on the same random patch of decoded prediction and HQ pixels, where
    lambda(t) = strength * (1 - t)."""

    distance: Distance
    codec: Codec
    strength: float
    patch: int
    """Side, pixels."""

    def __call__(self, x0: Tensor, pixels: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """Predicted HQ latents x0 (B, C, h, w) and HQ pixels (B, 3, H, W), uint8, with
        H = downsample * h, to lambda(t) * distance (B,); B may be 0.

        The decoder's activations are recomputed in the backward pass: at 512 pixels they would fill
        a GPU.
        """
        if not len(x0):
            return x0.new_zeros(0)
        factor = self.codec.downsample
        height, width = x0.shape[-2:]
        side_h, side_w = (min(n, max(1, self.patch // factor)) for n in (height, width))
        top = _draw(height - side_h, generator)
        left = _draw(width - side_w, generator)
        latents = x0[..., top : top + side_h, left : left + side_w]
        prediction: Tensor = checkpoint(self.codec.decode, latents, use_reentrant=False)
        window = pixels[
            ..., factor * top : factor * (top + side_h), factor * left : factor * (left + side_w)
        ]
        original = window.to(prediction) / 127.5 - 1
        return self.strength * (1 - t) * self.distance(prediction, original)


def _draw(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound + 1, (), generator=generator, device=generator.device))


def charbonnier(prediction: Tensor, original: Tensor, *, epsilon: float) -> Tensor:
    """mean sqrt((a - b)^2 + epsilon^2) - epsilon: a smooth L1, 0 at equality."""
    squared = (prediction - original).square() + epsilon**2
    return squared.sqrt().mean(dim=(1, 2, 3)) - epsilon


def load_perceptual_loss(
    settings: PerceptualSettings, codec: Codec, device: torch.device
) -> PatchPerceptualLoss | None:
    """The perceptual loss that the recipe names; None for `none`."""
    match settings:
        case NoPerceptual():
            return None
        case Charbonnier():
            distance: Distance = partial(charbonnier, epsilon=settings.epsilon)
        case Lpips():
            distance = LpipsDistance.from_file(lpips_weights(settings.weights)).to(device)
    return PatchPerceptualLoss(
        distance, codec, strength=settings.strength, patch=settings.patch_size
    )

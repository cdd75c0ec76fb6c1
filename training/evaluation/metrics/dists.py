"""DISTS (Ding et al. 2020): structure and texture of VGG-16's features, without resizing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.losses.lpips import vgg16_slices

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's."""
_C1 = _C2 = 1e-6


class HanningPool(nn.Module):
    """Halves each side by the root of the mean square under a Hanning window of 3 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        taps = x.new_tensor([0.5, 1.0, 0.5])
        window = torch.outer(taps, taps) / taps.sum() ** 2
        kernel = window.expand(x.shape[1], 1, 3, 3)
        means = functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1])
        return (means + 1e-12).sqrt()


class Dists(nn.Module):
    """The distance of (B, 3, H, W) twice, in [0, 1] -> (B,); 0 for equal pictures."""

    mean: Tensor
    std: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.slices = vgg16_slices(HanningPool)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.widths = [3, 64, 128, 256, 512, 512]
        for name in ("alpha", "beta"):
            self.register_buffer(name, torch.zeros(1, sum(self.widths), 1, 1))
        self.requires_grad_(False)

    def forward(self, result: Tensor, original: Tensor) -> Tensor:
        total = self.alpha.sum() + self.beta.sum()
        weights = ((each / total).split(self.widths, dim=1) for each in (self.alpha, self.beta))
        likeness = result.new_zeros(len(result))
        for x, y, alpha, beta in zip(
            self._features(result), self._features(original), *weights, strict=True
        ):
            parts = alpha * _texture(x, y) + beta * _structure(x, y)
            likeness = likeness + parts.sum(dim=(1, 2, 3))
        return 1 - likeness

    def _features(self, picture: Tensor) -> list[Tensor]:
        """The picture itself, then each slice's."""
        found = [picture]
        x = (picture - self.mean) / self.std
        for one in self.slices:
            x = one(x)
            found.append(x)
        return found


def _texture(x: Tensor, y: Tensor) -> Tensor:
    """Of the means, (B, C, 1, 1)."""
    a, b = (each.mean(dim=(2, 3), keepdim=True) for each in (x, y))
    return (2 * a * b + _C1) / (a**2 + b**2 + _C1)


def _structure(x: Tensor, y: Tensor) -> Tensor:
    """Of what is left without the means, (B, C, 1, 1)."""
    x, y = (each - each.mean(dim=(2, 3), keepdim=True) for each in (x, y))
    both, a, b = (
        product.mean(dim=(2, 3), keepdim=True) for product in (x * y, x.square(), y.square())
    )
    return (2 * both + _C2) / (a + b + _C2)

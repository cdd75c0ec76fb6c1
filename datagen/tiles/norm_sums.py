"""A group norm over all tiles of a picture: what it would measure of the whole, and its use."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


class NormSums:
    """Count, sum and sum of squares of what a group norm sees, of each sample and group."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self._sums: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Counts a tile's places: x is (B, C, ...)."""
        groups = _precise(x).reshape(len(x), self.norm.num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        mean = mean.double()
        squares = variance.double() + mean**2
        sums = groups.shape[2] * torch.stack([torch.ones_like(mean), mean, squares])
        self._sums = sums if self._sums is None else self._sums + sums

    def are_finite(self) -> bool:
        return self._sums is not None and bool(self._sums.isfinite().all())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What the norm does to each sample and channel: two of (B, C), float64."""
        assert self._sums is not None, "nothing was counted"
        norm = self.norm
        count, total, squares = self._sums
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0)
        repeats = norm.num_channels // norm.num_groups
        scale = (variance + norm.eps).rsqrt().repeat_interleave(repeats, dim=1)
        shift = -mean.repeat_interleave(repeats, dim=1) * scale
        if norm.affine:
            scale = scale * norm.weight.double()
            shift = shift * norm.weight.double() + norm.bias.double()
        return scale, shift

    def apply(self) -> None:
        """From now on the norm uses what was counted in place of its input's own values."""
        scale, shift = self.scale_and_shift()
        self.norm.forward = partial(_scaled, scale, shift)  # type: ignore[method-assign]


def release(norm: nn.GroupNorm) -> None:
    """Undoes `NormSums.apply`, where it was called."""
    norm.__dict__.pop("forward", None)


def _scaled(scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    places = (..., *(None for _ in range(x.ndim - 2)))
    precise = _precise(x)
    scale, shift = (values[places].to(precise.dtype) for values in (scale, shift))
    return torch.addcmul(shift, precise, scale).to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

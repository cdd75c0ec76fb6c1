"""A group norm over all tiles of a picture: what it would measure of the whole, and its use."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional


class NormSums:
    """Count, sum and sum of squares of what a group norm sees, of each sample and group."""

    def __init__(self, norm: nn.GroupNorm, sums: Tensor | None = None) -> None:
        self.norm = norm
        self.sums = sums
        """(3, B, groups), float64; None while nothing was counted."""

    def add(self, x: Tensor) -> None:
        """Counts a tile's places: x is (B, C, ...)."""
        self._normed(_precise(x), None, None)

    def measure(self, x: Tensor) -> Tensor:
        """Counts a tile's places, and gives what the norm by itself makes of them."""
        norm = self.norm
        if x.is_contiguous() and x.dtype == _precise(x).dtype:
            return self._normed(x, norm.weight, norm.bias)
        self.add(x)
        return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

    def _normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        norm, places = self.norm, x[0, 0].numel()
        # A twentieth of the time of `var_mean`; of another order in memory it rounds much more.
        shape = len(x), norm.num_channels, places, norm.num_groups, norm.eps
        result, mean, deviation = torch.native_group_norm(x.contiguous(), weight, bias, *shape)
        mean, variance = mean.double(), deviation.double() ** -2 - norm.eps
        count = places * norm.num_channels // norm.num_groups
        sums = count * torch.stack([torch.ones_like(mean), mean, variance + mean**2])
        self.sums = sums if self.sums is None else self.sums + sums
        return result

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What the norm does to each sample and channel: two of (B, C), float64."""
        assert self.sums is not None, "nothing was counted"
        norm = self.norm
        count, total, squares = self.sums
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0)
        repeats = norm.num_channels // norm.num_groups
        scale = (variance + norm.eps).rsqrt().repeat_interleave(repeats, dim=1)
        shift = -mean.repeat_interleave(repeats, dim=1) * scale
        if norm.affine:
            weight, bias = (each.detach().to(scale) for each in (norm.weight, norm.bias))
            scale, shift = scale * weight, shift * weight + bias
        return scale, shift

    def apply(self) -> None:
        """From now on the norm uses what was counted in place of its input's own values."""
        apply(self.norm, *self.scale_and_shift())


def apply(norm: nn.GroupNorm, scale: Tensor, shift: Tensor) -> None:
    """From now on the norm does this to its input's samples and channels, (B, C) each, or to each
    of its samples the same, (1, C)."""
    norm.forward = partial(_scaled, scale, shift)  # type: ignore[method-assign]


def release(norm: nn.GroupNorm) -> None:
    """Undoes `apply`, where it was called."""
    norm.__dict__.pop("forward", None)


def _scaled(scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale, shift = scale.to(x.device, dtype), shift.to(x.device, dtype)
    if x.is_contiguous():  # a quarter of the other way's time
        flat = x.view(1, -1, *x.shape[2:])
        scale, shift = (each.expand(len(x), -1).flatten() for each in (scale, shift))
        nothing = torch.zeros_like(scale), torch.ones_like(scale)
        return functional.batch_norm(flat, *nothing, scale, shift, eps=0.0).view(x.shape)
    places = (..., *(None for _ in range(x.ndim - 2)))
    return torch.addcmul(shift[places], x.to(dtype), scale[places]).to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

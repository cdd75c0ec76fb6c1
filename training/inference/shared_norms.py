"""Group norms that all tiles of a picture share.

A tile's own mean and variance differ from its neighbor's, and that is what makes most of a seam.
So every evaluation passes over the tiles twice: once to measure, once with what all have together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedNorms:
    """Mean and variance of every group norm of a network, over all tiles of one picture."""

    def __init__(self, net: nn.Module) -> None:
        self.norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
        self._sums: dict[nn.GroupNorm, Tensor] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the network's passes are counted; what was measured before is forgotten."""
        self._sums.clear()
        hooks = [norm.register_forward_pre_hook(self._measure) for norm in self.norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the norms use what was measured in place of their input's own values."""
        for norm in self.norms:
            mean, variance = self._moments(norm)
            norm.forward = partial(_normalized, norm, mean, variance)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in self.norms:
                del norm.forward

    def are_finite(self) -> bool:
        """Whether everything that was measured is."""
        return all(bool(sums.isfinite().all()) for sums in self._sums.values())

    def _measure(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, nn.GroupNorm)
        groups = inputs[0].float().flatten(2).unflatten(1, (norm.num_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        count = groups.shape[2]
        squares = variance.double() + mean.double() ** 2
        sums = count * torch.stack([torch.ones_like(squares), mean.double(), squares]).sum(dim=1)
        self._sums[norm] = self._sums[norm] + sums if norm in self._sums else sums

    def _moments(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel (C,), float32."""
        count, total, squares = self._sums[norm]
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0)
        repeats = norm.num_channels // norm.num_groups
        return mean.float().repeat_interleave(repeats), variance.float().repeat_interleave(repeats)


def _normalized(norm: nn.GroupNorm, mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    weight, bias = (None if one is None else one.float() for one in (norm.weight, norm.bias))
    normal = functional.batch_norm(x.float(), mean, variance, weight, bias, eps=norm.eps)
    return normal.to(x.dtype)

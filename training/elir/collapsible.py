"""A 3x3 convolution that is trained as a wider 3x3 and a 1x1 after it, and computed as one.

Nothing is between the two, so they are one linear map: W = W2 W1, b = W2 b1 + b2. Every call
multiplies them first: the same outputs and gradients as two convolutions, for far less work once
there are more pixels in a batch than channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init


class CollapsibleConv(nn.Module):
    """(B, cin, h, w) -> (B, cout, h, w), by way of `expand` times `cout` channels."""

    def __init__(self, cin: int, cout: int, expand: int = 4) -> None:
        super().__init__()
        self.wide = nn.Conv2d(cin, expand * cout, 3, padding=1)
        self.narrow = nn.Conv2d(expand * cout, cout, 1)
        self.kept: tuple[Tensor, Tensor] | None = None
        """Its product inside `collapsed_once`."""

    def forward(self, x: Tensor | None) -> Any:
        """None gives the `product`: under ZeRO-3 weights are whole inside a module's call only."""
        if x is None:
            return self.product()
        # The zeros of the padding are input of the 3x3, so borders are the same, too.
        return functional.conv2d(x, *(self.kept or self.product()), padding=1)

    def product(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution, with gradients."""
        narrow = self.narrow.weight.flatten(1)
        assert self.wide.bias is not None and self.narrow.bias is not None
        weight = (narrow @ self.wide.weight.flatten(1)).view(-1, *self.wide.weight.shape[1:])
        return weight, narrow @ self.wide.bias + self.narrow.bias

    def collapsed(self) -> nn.Conv2d:
        """The one convolution that this is, multiplied in float64."""
        wide, narrow = self.wide, self.narrow
        assert wide.bias is not None and narrow.bias is not None
        weight, bias = collapse_weights(wide.weight, wide.bias, narrow.weight, narrow.bias)
        cin, cout = wide.in_channels, narrow.out_channels
        conv = skip_init(nn.Conv2d, cin, cout, 3, padding=1, device=weight.device)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv.train(self.training)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Becomes a given convolution exactly: it fills the first rows of the wide one, which the
        narrow one takes as they are; the rows left are random and not taken yet."""
        cout = len(bias)
        assert self.wide.bias is not None and self.narrow.bias is not None
        self.wide.weight[:cout] = weight
        self.wide.bias[:cout] = bias
        nn.init.zeros_(self.narrow.bias)
        nn.init.zeros_(self.narrow.weight)
        self.narrow.weight[:, :cout, 0, 0] = torch.eye(cout).to(self.narrow.weight)


@contextmanager
def collapsed_once(module: nn.Module) -> Iterator[None]:
    """In the block the module's weights stay as they are and are multiplied once for all its calls,
    which may be differentiated together."""
    blocks = [m for m in module.modules() if isinstance(m, CollapsibleConv)]
    try:
        for block in blocks:
            block.kept = block(None)
        yield
    finally:
        for block in blocks:
            block.kept = None


def conv3x3(cin: int, cout: int, expand: int | None) -> nn.Module:
    """A collapsible convolution; a plain one where `expand` is None."""
    if expand is None:
        return nn.Conv2d(cin, cout, 3, padding=1)
    return CollapsibleConv(cin, cout, expand)


@torch.no_grad()
def collapse_weights(
    wide: Tensor, wide_bias: Tensor, narrow: Tensor, narrow_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 3x3 convolution and the 1x1 after it, as those of one 3x3."""
    matrix = narrow.double().flatten(1)
    weight = (matrix @ wide.double().flatten(1)).view(-1, *wide.shape[1:])
    bias = matrix @ wide_bias.double() + narrow_bias.double()
    return weight.to(wide.dtype), bias.to(wide.dtype)


def collapse(module: nn.Module) -> nn.Module:
    """A copy with every block collapsed for good; of one block, its convolution."""
    if isinstance(module, CollapsibleConv):
        return module.collapsed()
    # A copy that takes these for the blocks, so that those are not copied first.
    blocks = {id(m): m.collapsed() for m in module.modules() if isinstance(m, CollapsibleConv)}
    return copy.deepcopy(module, blocks)

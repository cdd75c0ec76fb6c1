"""Where the tiles of a picture lie, in latents, and what of a tensor belongs to each.

A tensor's `side` is the number of its places along a latent: 8 for the pixels of a codec that
divides sides by 8, 1 for the latents themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Box(NamedTuple):
    """A rectangle of latents."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, tensor: Tensor, side: int = 1) -> Tensor:
        """The part of a whole picture's tensor (..., H, W)."""
        rows, columns = slice(self.top * side, self.bottom * side), self.left * side
        return tensor[..., rows, columns : self.right * side]

    def around(self, reach: int, height: int, width: int) -> Box:
        """With `reach` more latents on every side that is not the picture's own border."""
        return Box(
            max(0, self.top - reach),
            min(height, self.bottom + reach),
            max(0, self.left - reach),
            min(width, self.right + reach),
        )

    def within(self, outer: Box, tensor: Tensor, side: int = 1) -> Tensor:
        """The part of a tensor (..., H, W) that shows `outer`."""
        top, left = self.top - outer.top, self.left - outer.left
        height, width = self.bottom - self.top, self.right - self.left
        return Box(top, top + height, left, left + width).of(tensor, side)


def boxes(height: int, width: int, tile: int) -> Iterator[Box]:
    """Tiles of `tile` latents, row by row; the last ones are cut by the picture's border."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield Box(top, min(height, top + tile), left, min(width, left + tile))


class Assembled:
    """A whole picture's tensor, made of the results of its tiles."""

    def __init__(self, height: int, width: int, side: int) -> None:
        """Of a picture of `height` x `width` latents."""
        self._shape, self._side = (height * side, width * side), side
        self.whole: Tensor | None = None

    def put(self, box: Box, outer: Box, result: Tensor) -> None:
        """Takes the inside of what was computed of `outer`."""
        if self.whole is None:
            self.whole = result.new_empty(*result.shape[:-2], *self._shape)
        box.of(self.whole, self._side).copy_(box.within(outer, result, self._side))

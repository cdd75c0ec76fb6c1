"""Where the tiles of a picture lie, in latents, and what of a tensor belongs to each.

A tensor's `side` is the number of its places along a latent: 8 for the pixels of a codec that
divides sides by 8, 1 for the latents themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """A rectangle of latents, or of pixels where that is said."""

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

    def latents(self, side: int) -> Box:
        """Those that show a box of pixels, `side` of them along a latent."""
        return Box(
            self.top // side, -(-self.bottom // side), self.left // side, -(-self.right // side)
        )

    def pixels(self, side: int) -> Box:
        """Those that a box of latents shows."""
        return Box(*(side * place for place in self))

    def within(self, outer: Box, tensor: Tensor, side: int = 1) -> Tensor:
        """The part of a tensor (..., H, W) that shows `outer`."""
        top, left = self.top - outer.top, self.left - outer.left
        height, width = self.bottom - self.top, self.right - self.left
        return Box(top, top + height, left, left + width).of(tensor, side)


Source = Callable[[Box], Tensor]
"""What a picture (B, C, H, W) shows of a rectangle of its latents."""


class Part(NamedTuple):
    """A tile, what was seen around it, and what came of that."""

    box: Box
    outer: Box
    result: Tensor
    """(B, C, h, w)."""

    @property
    def side(self) -> int:
        return self.result.shape[-1] // (self.outer.right - self.outer.left)

    def inside(self) -> Tensor:
        return self.box.within(self.outer, self.result, self.side)


def boxes(height: int, width: int, tile: int) -> Iterator[Box]:
    """Tiles of `tile` latents, row by row; the last ones are cut by the picture's border."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield Box(top, min(height, top + tile), left, min(width, left + tile))


def in_rows(parts: Iterable[Part], width: int) -> Iterator[Tensor]:
    """Tiles of a picture of `width` latents, as `boxes` lists them, joined to all of its rows: (B,
    C, rows, W) from top to bottom."""
    line: list[Tensor] = []
    for part in parts:
        line.append(part.inside())
        if part.box.right == width:
            yield line[0] if len(line) == 1 else torch.cat(line, dim=-1)
            line.clear()


class Assembled:
    """A whole picture's tensor, made of the results of its tiles."""

    def __init__(self, height: int, width: int, *, on_host: bool = False) -> None:
        """Of a picture of `height` x `width` latents.

        Args:
            on_host: it is held on the CPU, wherever its parts are.
        """
        self._shape, self._on_host = (height, width), on_host
        self.whole: Tensor | None = None

    def put(self, part: Part) -> None:
        """Takes the inside of what was computed."""
        result, side = part.result, part.side
        if self.whole is None:
            device = torch.device("cpu") if self._on_host else result.device
            sides = [side * length for length in self._shape]
            self.whole = result.new_empty(*result.shape[:-2], *sides, device=device)
        part.box.of(self.whole, side).copy_(part.inside())


def assembled(parts: Iterable[Part], height: int, width: int) -> Tensor:
    """All of a picture of `height` x `width` latents."""
    result = Assembled(height, width)
    for part in parts:
        result.put(part)
    assert result.whole is not None, "a picture has tiles"
    return result.whole

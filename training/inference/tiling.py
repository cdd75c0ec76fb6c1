"""A function of pictures or latents, run on overlapping tiles and blended to one result.

Nothing here knows a network: `training/inference/shared_norms.py` makes tiles of one agree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def tile_plan(length: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles of one side start: the fewest that cover it, all whole, evenly spaced.

    Starts are multiples of `multiple`, neighbors share `overlap` or more, and the last tile ends
    where the side does; a side that is no multiple counts as the next one, to which it is padded.
    A side that fits into one tile gives [0].

    Raises:
        ValueError: no tile is left beside the overlap.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be 0 or more and less than tile={tile}")
    if length <= tile:
        return [0]
    tile = tile // multiple
    free = math.ceil(length / multiple) - tile  # of the last start, in units of `multiple`
    stride = tile - math.ceil(overlap / multiple)
    if stride < 1:
        raise ValueError(
            f"tile={tile * multiple} leaves nothing beside overlap={overlap} in steps of {multiple}"
        )
    gaps = math.ceil(free / stride)
    return [multiple * (index * free // gaps) for index in range(gaps + 1)]


class Tile(NamedTuple):
    """A rectangle of a picture, and how much each of its places counts in the result."""

    rows: slice
    columns: slice
    weight: Tensor
    """(height, width), float32, on the CPU: 1 but where it overlaps others, and never 0."""

    def of(self, picture: Tensor) -> Tensor:
        return picture[..., self.rows, self.columns]


def tiles(height: int, width: int, tile: int, overlap: int, multiple: int = 1) -> list[Tile]:
    """The tiles of a picture, row by row."""
    sides = []
    for length in (height, width):
        starts = tile_plan(length, tile, overlap, multiple)
        size = min(length, tile)
        sides.append(
            [(slice(s, s + size), w) for s, w in zip(starts, _ramps(starts, size), strict=True)]
        )
    return [
        Tile(rows, columns, vertical[:, None] * horizontal)
        for (rows, vertical), (columns, horizontal) in itertools.product(*sides)
    ]


def batched(
    parts: Sequence[Tile], picture: Tensor, size: int
) -> Iterator[tuple[Sequence[Tile], Tensor]]:
    """Up to `size` tiles at a time, with their values (size * B, C, height, width)."""
    for first in range(0, len(parts), size):
        group = parts[first : first + size]
        yield group, torch.cat([part.of(picture) for part in group])


def blend(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    *,
    multiple: int = 1,
    batch: int = 1,
) -> Tensor:
    """fn on tiles of x (B, C, H, W), blended: float32 (B, C', H, W).

    Results are weighted by a squared sine in the overlaps only, and their sums kept in float32.

    Args:
        fn: tiles (n, C, h, w) to results of the same sides (n, C', h, w).
        batch: tiles that `fn` gets at once, of each picture.
    """
    height, width = x.shape[-2:]
    total, weights = None, torch.zeros(height, width, device=x.device)
    for group, values in batched(tiles(height, width, tile, overlap, multiple), x, batch):
        for part, result in zip(group, fn(values).float().split(len(x)), strict=True):
            if total is None:
                total = result.new_zeros(len(x), result.shape[1], height, width)
            weight = part.weight.to(x.device)
            part.of(total).add_(weight * result)
            part.of(weights).add_(weight)
    assert total is not None
    return total.div_(weights)


def _ramps(starts: Sequence[int], size: int) -> Iterator[Tensor]:
    """The weights (size,) of tiles along one side, which rise over what they share with the tile
    before and fall over what they share with the next."""
    shared = [first + size - second for first, second in itertools.pairwise(starts)]
    for before, after in zip([0, *shared], [*shared, 0], strict=True):
        weight = torch.ones(size)
        weight[:before] *= _rise(before)
        weight[size - after :] *= _rise(after).flip(0)
        yield weight


def _rise(length: int) -> Tensor:
    """sin^2 from 0 to 1 at the middles of `length` places; it and its mirror image sum to 1."""
    places = (torch.arange(length) + 0.5) / max(1, length)
    return torch.sin(places * math.pi / 2) ** 2

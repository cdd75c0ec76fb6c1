"""A function of pictures or latents, run on overlapping tiles and blended to one result.

Nothing here knows a network: `training/inference/tiles/shared_norms.py` makes tiles of one agree.
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


def blend(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    *,
    multiple: int = 1,
) -> Tensor:
    """fn on tiles of x (B, C, H, W), blended: float32 (B, C', H, W).

    Results are weighted by a squared sine in the overlaps only, and their sums kept in float32.

    Args:
        fn: a tile (B, C, h, w) to its result of the same sides (B, C', h, w).
    """
    height, width = x.shape[-2:]
    total, places = None, tiles(height, width, tile, overlap, multiple)
    for rows, part in blended_rows((fn(place.of(x)) for place in places), places):
        if total is None:
            total = part.new_empty(*part.shape[:2], height, width)
        total[..., rows, :] = part
    assert total is not None
    return total


def blended_rows(
    results: Iterator[Tensor], places: Sequence[Tile]
) -> Iterator[tuple[slice, Tensor]]:
    """The results of tiles, blended: rows from top to bottom, each as soon as no later tile has a
    part in them, and those rows of the result, float32 (B, C, rows, W).

    Rows that were given are looked at by no later tile, so that what the tiles show may be
    replaced there.

    Args:
        results: (B, C, h, w) of each tile in order, of its sides.
        places: those of `tiles`.
    """
    width = max(place.columns.stop for place in places)
    lines = [list(line) for _, line in itertools.groupby(places, key=lambda place: place.rows)]
    ends = [*(line[0].rows.start for line in lines[1:]), lines[-1][0].rows.stop]
    carried: tuple[Tensor, Tensor] | None = None  # sums and weights of rows shared with the next
    for line, end in zip(lines, ends, strict=True):
        top, bottom = line[0].rows.start, line[0].rows.stop
        total, weights = torch.empty(0), torch.empty(0)
        for number, place in enumerate(line):
            result = next(results).float()
            if number == 0:
                total = result.new_zeros(*result.shape[:2], bottom - top, width)
                weights = result.new_zeros(bottom - top, width)
                if carried is not None:
                    total[..., : carried[0].shape[-2], :] = carried[0]
                    weights[: len(carried[1])] = carried[1]
            weight = place.weight.to(result.device)
            total[..., place.columns].add_(weight * result)
            weights[:, place.columns].add_(weight)
        done = end - top
        carried = total[..., done:, :].clone(), weights[done:].clone()
        yield slice(top, end), total[..., :done, :].div_(weights[:done])


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

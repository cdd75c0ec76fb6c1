"""Ways of restoring latents in tiles, as others do it and as we do.

All take latents (1, C, h, w) and a velocity u(x, t, s), and restore in two steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.flowmap.interpolant import sample
from training.flowmap.system import FlowMapRestorer
from training.inference.tiles.tiler import OVERLAP, Tiler
from training.inference.tiling import blend, tile_plan

STEPS = 2
AROUND = 32
"""Pixels that a cropped tile sees beyond its own."""
_VARIANCE = 0.01
"""Of the Gaussian, over the square of a tile's side, as in LBM's and OSEDiff's code."""


@dataclass(frozen=True)
class Way:
    """One way of joining tiles."""

    name: str
    restored: Callable[[Tensor], Tensor]
    lines: Callable[[int], set[int]]
    """Where tiles begin and end along a side of so many latents."""


def ways(restorer: FlowMapRestorer, tile: int) -> list[Way]:
    """
    Args:
        tile: side, pixels.
    """
    down, multiple = restorer.codec.downsample, restorer.net.downsample
    side, overlap, around = tile // down, OVERLAP // down, AROUND // down
    velocity, tiler = restorer.net.velocity(restorer.guidance), Tiler(tile=tile)

    def crop(x: Tensor) -> Tensor:
        """Tiles see what is around them, which is cut off: Real-ESRGAN."""
        result = torch.empty_like(x)
        cut = side - 2 * around
        for top, left in itertools.product(range(0, x.shape[-2], cut), range(0, x.shape[-1], cut)):
            first, second = max(0, top - around), max(0, left - around)
            seen = x[..., first : top + cut + around, second : left + cut + around]
            made = sample(velocity, seen, STEPS)[..., top - first :, left - second :]
            result[..., top : top + cut, left : left + cut] = made[..., :cut, :cut]
        return result

    def fragments(x: Tensor) -> Tensor:
        """Tiles at fixed distances, the last ones filled with zeros, and Gaussian weights: LBM."""
        return _gaussian(lambda part: sample(velocity, part, STEPS), x, side, overlap, clamp=False)

    def latent_gaussian(x: Tensor) -> Tensor:
        """Gaussian weights at every evaluation, the last tile moved inside: StableSR, OSEDiff."""

        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return _gaussian(lambda part: velocity(part, t, s), x, side, overlap, clamp=True)

        return sample(u, x, STEPS)

    def own_norms(x: Tensor) -> Tensor:
        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return blend(lambda part: velocity(part, t, s), x, side, overlap, multiple=multiple)

        return sample(u, x, STEPS)

    def ours(x: Tensor) -> Tensor:
        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            def part(one: Tensor) -> Tensor:
                return velocity(one, t, s)

            return tiler(restorer.net, part, x, pixels=down, multiple=multiple)

        return sample(u, x, STEPS)

    def even(length: int) -> set[int]:
        return _edges(tile_plan(length, side, overlap, multiple), side, length)

    return [
        Way("crop and pad", crop, lambda length: set(range(0, length, side - 2 * around)) - {0}),
        Way(
            "fragments, Gaussian",
            fragments,
            lambda n: _edges(_starts(n, side, overlap, clamp=False), side, n),
        ),
        Way(
            "latent Gaussian",
            latent_gaussian,
            lambda n: _edges(_starts(n, side, overlap, clamp=True), side, n),
        ),
        Way("ours, a tile's own norms", own_norms, even),
        Way("ours", ours, even),
    ]


def _gaussian(
    fn: Callable[[Tensor], Tensor], x: Tensor, side: int, overlap: int, *, clamp: bool
) -> Tensor:
    height, width = x.shape[-2:]
    middle = (torch.arange(side) - (side - 1) / 2) / side
    curve = torch.exp(-(middle**2) / (2 * _VARIANCE))
    weight = curve[:, None] * curve
    total, weights = torch.zeros_like(x), torch.zeros(height, width)
    for top, left in itertools.product(
        _starts(height, side, overlap, clamp=clamp), _starts(width, side, overlap, clamp=clamp)
    ):
        seen = x[..., top : top + side, left : left + side]
        rows, columns = seen.shape[-2:]
        filled = functional.pad(seen, (0, side - columns, 0, side - rows))
        place = (..., slice(top, top + rows), slice(left, left + columns))
        total[place] += weight[:rows, :columns] * fn(filled)[..., :rows, :columns]
        weights[place] += weight[:rows, :columns]
    return total / weights


def _starts(length: int, side: int, overlap: int, *, clamp: bool) -> Iterator[int]:
    for start in range(0, max(1, length - overlap), side - overlap):
        yield max(0, min(start, length - side)) if clamp else start


def _edges(starts: Iterator[int] | list[int], side: int, length: int) -> set[int]:
    edges = {edge for start in starts for edge in (start, start + side)}
    return {edge for edge in edges if 0 < edge < length}

"""A convolutional network in tiles, exactly: each tile sees all that decides about its inside, and
is cut, not blended. For networks without global statistics, which group norms are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial

from torch import Tensor, nn

from datagen.tiles.boxes import Box, Part, Source, assembled, boxes
from datagen.tiles.run import Run, here


def tiled(
    network: Callable[[Tensor], Tensor], x: Tensor, tile: int, *, reach: int, inside: int = 1
) -> Tensor:
    """`network(x)`, in tiles.

    Args:
        tile: side of a tile in latents, 1 or more.
        reach: latents around one that decide about it.
        inside: side of a latent in the network's input.
    """
    height, width = (length // inside for length in x.shape[-2:])
    if max(height, width) <= tile:
        return network(x)
    source = partial(Box.of, tensor=x, side=inside)
    return assembled(tiled_parts(network, source, (height, width), tile, reach), height, width)


def tiled_parts(
    network: Callable[[Tensor], Tensor],
    source: Source,
    size: tuple[int, int],
    tile: int,
    reach: int,
    run: Run = here,
) -> Iterator[Part]:
    """The same of a picture of (height, width) latents that need not be whole."""
    # At the picture's own borders the network pads as it would there in one piece.
    places = [(box, box.around(reach, *size)) for box in boxes(*size, tile)]
    seen = (source(outer).contiguous() for _, outer in places)
    for (box, outer), result in zip(places, run(network, called, seen), strict=True):
        yield Part(box, outer, result)


def called(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return network(x)


def reach_of(modules: Iterable[nn.Module], side: int) -> int:
    """Latents around one that decide about what the modules, one after another, make of it.

    Knows convolutions of odd sides, and doubling of the nearest; all else counts as seeing single
    places.

    Args:
        side: places along a latent in the input.
    """
    reach, places = Fraction(0), Fraction(side)
    for layer in _layers(modules):
        if isinstance(layer, nn.Conv2d):
            # A stride of two rounds up to one more place.
            seen = layer.kernel_size[0] // 2 if layer.stride[0] == 1 else layer.kernel_size[0] - 1
            reach += seen / places
        places *= _growth(layer)
    return math.ceil(reach)


def growth_of(modules: Iterable[nn.Module]) -> Fraction:
    """Side of the result over that of the input: 1/8 of an encoder that divides sides by 8."""
    return math.prod(map(_growth, _layers(modules)), start=Fraction(1))


def _layers(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    return (layer for module in modules for layer in module.modules())


def _growth(layer: nn.Module) -> Fraction:
    if isinstance(layer, nn.Conv2d):
        return Fraction(1, int(layer.stride[0]))
    if isinstance(layer, nn.ConvTranspose2d):
        return Fraction(int(layer.stride[0]))
    doubles = isinstance(layer, nn.Upsample) or type(layer).__name__ == "Upsample2D"
    return Fraction(2 if doubles else 1)

"""The inside of what a decoder makes of a picture, exactly: each layer computes no more than what
decides about it. For networks without global statistics, as in `reach.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from datagen.tiles.boxes import Box
from datagen.tiles.reach import growth_of, reach_of


def decode_inside(decoder: Any, z: Tensor, box: Box) -> Tensor:
    """`decoder(z)` at a box of the latents z (B, C, h, w).

    Args:
        decoder: as diffusers' `DecoderTiny`: `layers` one after another, and what it does before
            and after them, it does to each place for itself.
    """
    layers, (height, width) = list(decoder.layers), z.shape[-2:]
    seen = [
        box.around(reach_of(layers[number:], _side(layers[:number])), height, width)
        for number in range(len(layers))
    ]
    with _cut(layers, seen):
        result: Tensor = decoder(seen[0].of(z))
    return box.within(seen[-1], result, _side(layers))


@contextmanager
def _cut(layers: Sequence[nn.Module], seen: Sequence[Box]) -> Iterator[None]:
    """Inside, a layer is given a box of what the one before it has made of a larger one."""
    hooks = [
        layers[number].register_forward_pre_hook(
            partial(_inner, seen[number], seen[number - 1], _side(layers[:number]))
        )
        for number in range(1, len(layers))
        if seen[number] != seen[number - 1]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _inner(box: Box, outer: Box, side: int, _: nn.Module, given: tuple[Any, ...]) -> Any:
    return (box.within(outer, given[0], side), *given[1:])


def _side(layers: Sequence[nn.Module]) -> int:
    """Places along a latent, after these layers."""
    return int(growth_of(layers))

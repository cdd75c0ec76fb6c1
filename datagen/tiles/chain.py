"""A chain of layers with group norms and attention in tiles, exactly.

A group norm needs the whole picture's statistics, and attention its keys and values, so each costs
a pass over the tiles, up to where it stands: those before it are known by then. A pass begins at
the last place of the chain whose activations, of the whole picture, were kept: where they are few
enough, and always after attention, which takes the most time, and where latents begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datagen.tiles.attention import KeysAndValues
from datagen.tiles.boxes import Assembled, Box, Part, Source, boxes
from datagen.tiles.norm_sums import NormSums, release
from datagen.tiles.reach import reach_of

KEPT_BYTES = 128
"""For each pixel of the picture, of activations that are kept where nothing else is said."""
_PROBE = 2
"""Side of a small picture that tells the sizes of activations, latents."""


class Chain:
    """Layers one after another, each a function of the result of the one before."""

    def __init__(self, layers: Sequence[nn.Module], side: int) -> None:
        """
        Args:
            side: places along a latent in the first layer's input.
        """
        self.layers, self.side = layers, side

    @torch.no_grad()
    def parts(
        self,
        source: Source,
        size: tuple[int, int],
        tile: int,
        keep: int | None = None,
        *,
        on_host: bool = False,
    ) -> Iterator[Part]:
        """What the chain makes of a picture, tile by tile as `boxes` lists them; no gradient.

        Args:
            source: gives the picture, which need not be whole.
            size: (height, width) in latents.
            tile: side of a tile, latents.
            keep: bytes of activations between two layers that may be held of the whole picture;
                `KEPT_BYTES` a pixel when None.
            on_host: activations are held in the memory of the CPU.
        """
        work = _Tiling(self, source, size, tile, keep, on_host)
        with ExitStack() as undo:
            for index, layer in enumerate(self.layers):
                for norm in (part for part in layer.modules() if isinstance(part, nn.GroupNorm)):
                    sums = NormSums(norm)
                    work.show(index, norm, _counted_by(sums))
                    undo.callback(release, norm)
                    sums.apply()
                if attends(layer):
                    seen = KeysAndValues(layer, *work.places(index))
                    work.show(index, layer.to_k, seen.add)  # type: ignore[arg-type]
                    for part in (layer.to_k, layer.to_v):
                        undo.callback(release, part)  # type: ignore[arg-type]
                    seen.apply()
            yield from work.tiles(len(self.layers))


def _counted_by(sums: NormSums) -> Callable[[Tensor, int, int], None]:
    return lambda x, top, left: sums.add(x)


def attends(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Attention"


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer of a diffusers autoencoder makes of x (B, C, H, W)."""
    if type(layer).__name__ == "ResnetBlock2D":
        result: Tensor = layer(x, None)
    else:
        result = layer(x.contiguous() if attends(layer) else x)  # it takes no view of a larger one
    return result


class _Tiling:
    """One picture's way through the chain."""

    def __init__(
        self,
        chain: Chain,
        source: Source,
        size: tuple[int, int],
        tile: int,
        keep: int | None,
        on_host: bool,
    ) -> None:
        self.layers, self.size, self.tile, self.on_host = chain.layers, size, tile, on_host
        # A layer's input, whole, and which layer it is.
        self.source, self.first = source, 0
        one = source(Box(0, 1, 0, 1))
        self.device = one.device
        shapes = _shapes(chain, one)
        self.sides = [shape[-1] // _PROBE for shape in shapes]
        latents = len(one) * size[0] * size[1]
        if keep is None:
            keep = KEPT_BYTES * latents * max(self.sides) ** 2
        per_latent = [one.element_size() * shape[1:].numel() / _PROBE**2 for shape in shapes]
        always = {at + 1 for at, layer in enumerate(chain.layers) if attends(layer)}
        always.add(self.sides.index(1))
        self.kept = [
            at for at, each in enumerate(per_latent) if at in always or latents * each <= keep
        ]

    def places(self, index: int) -> tuple[int, int]:
        """(height, width) of a layer's input."""
        height, width = (length * self.sides[index] for length in self.size)
        return height, width

    def show(self, target: int, part: nn.Module, take: Callable[[Tensor, int, int], None]) -> None:
        """Gives what a part of a layer sees of the whole picture: (B, C, h, w) of each tile, and
        where that begins. Norms and attention before it have been applied."""
        at = max((place for place in self.kept if self.first < place <= target), default=None)
        kept = Assembled(*self.size, on_host=self.on_host)
        side = self.sides[target]
        for tile in self.tiles(target, at, kept):
            seen = _input_of(part, self.layers[target], tile.result)
            inside = tile.box.within(tile.outer, seen, side)
            take(inside, tile.box.top * side, tile.box.left * side)
        if at is not None and kept.whole is not None:
            self.source = partial(self._kept, kept.whole, self.sides[at])
            self.first = at

    def tiles(
        self, end: int, at: int | None = None, kept: Assembled | None = None
    ) -> Iterator[Part]:
        """What the layers before `end` make of each tile, with what the next one needs around it;
        the input of layer `at` is kept."""
        seen = self.layers[self.first : end + 1]
        reach = reach_of(seen, self.sides[self.first])
        for box in boxes(*self.size, self.tile):
            outer = box.around(reach, *self.size)
            x = self.source(outer)
            for index in range(self.first, end):
                x = run(self.layers[index], x)
                if kept is not None and index + 1 == at:
                    kept.put(Part(box, outer, x))
            yield Part(box, outer, x)

    def _kept(self, whole: Tensor, side: int, box: Box) -> Tensor:
        return box.of(whole, side).to(self.device)


def _shapes(chain: Chain, one: Tensor) -> list[torch.Size]:
    """Of every layer's input and of the result, for one picture of _PROBE x _PROBE latents."""
    small = one.new_zeros(1, one.shape[1], _PROBE * chain.side, _PROBE * chain.side)
    shapes = [small.shape]
    for layer in chain.layers:
        small = run(layer, small)
        shapes.append(small.shape)
    return shapes


class _Reached(Exception):
    """Ends a layer's pass at the part that is asked about."""


def _input_of(part: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What a part sees when its layer works on x, (B, C, h, w)."""

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _Reached(inputs[0])

    hook = part.register_forward_pre_hook(stop)
    try:
        run(layer, x)
    except _Reached as reached:
        seen: Tensor = reached.args[0]
    else:
        raise AssertionError("the layer does not use the part")
    finally:
        hook.remove()
    if isinstance(part, nn.Linear):
        seen = seen.transpose(1, 2)
    return seen if seen.ndim == 4 else seen.unflatten(2, x.shape[-2:])  # inside of attention

"""A chain of layers with group norms in tiles, exactly.

A group norm needs the whole picture's statistics, so each one costs a pass over the tiles, up to
where it stands: those before it are known by then. A pass begins at the last place of the chain
whose activations, of the whole picture, are few enough to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from datagen.tiles.boxes import Assembled, Box, boxes
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

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = run(layer, x)
        return x

    def tiled(self, x: Tensor, tile: int, keep: int | None = None) -> Tensor:
        """The same in tiles; no gradient.

        Args:
            x: (B, C, H, W), sides multiples of a latent's.
            tile: side of a tile, latents.
            keep: bytes of activations between two layers that may be held of the whole picture;
                `KEPT_BYTES` a pixel when None.
        """
        work = _Tiling(self, x, tile, keep)
        del x  # it is let go of as soon as later activations are kept
        with torch.no_grad(), ExitStack() as undo:
            for index, layer in enumerate(self.layers):
                for norm in (part for part in layer.modules() if isinstance(part, nn.GroupNorm)):
                    sums = work.measured(index, norm)
                    undo.callback(release, norm)
                    sums.apply()
            return work.result()


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer of a diffusers autoencoder makes of x (B, C, H, W)."""
    result: Tensor = layer(x, None) if type(layer).__name__ == "ResnetBlock2D" else layer(x)
    return result


class _Tiling:
    """One picture's way through the chain."""

    def __init__(self, chain: Chain, x: Tensor, tile: int, keep: int | None) -> None:
        self.layers, self.tile = chain.layers, tile
        self.height, self.width = (length // chain.side for length in x.shape[-2:])
        # A layer's input, whole, and which layer it is.
        self.x, self.first = x, 0
        shapes = _shapes(chain, x)
        self.sides = [shape[-1] // _PROBE for shape in shapes]
        latents = len(x) * self.height * self.width
        if keep is None:
            keep = KEPT_BYTES * latents * max(self.sides) ** 2
        per_latent = [x.element_size() * shape[1:].numel() / _PROBE**2 for shape in shapes]
        self.kept = [at for at, size in enumerate(per_latent) if latents * size <= keep]

    def measured(self, target: int, norm: nn.GroupNorm) -> NormSums:
        """What a norm of a layer sees of the whole picture; those before it have been applied."""
        at = max((place for place in self.kept if self.first < place <= target), default=None)
        kept = None if at is None else Assembled(self.height, self.width, self.sides[at])
        sums = NormSums(norm)
        for box, outer, part in self._tiles(target + 1):
            for index in range(self.first, target):
                part = run(self.layers[index], part)
                if kept is not None and index + 1 == at:
                    kept.put(box, outer, part)
            seen = _input_of(norm, self.layers[target], part)
            sums.add(box.within(outer, seen, seen.shape[-1] // (outer.right - outer.left)))
        if at is not None and kept is not None and kept.whole is not None:
            self.x, self.first = kept.whole, at
        return sums

    def result(self) -> Tensor:
        """The chain's, when all norms have been applied."""
        result = Assembled(self.height, self.width, self.sides[-1])
        for box, outer, part in self._tiles(len(self.layers)):
            for layer in self.layers[self.first :]:
                part = run(layer, part)
            result.put(box, outer, part)
        assert result.whole is not None
        return result.whole

    def _tiles(self, end: int) -> Iterator[tuple[Box, Box, Tensor]]:
        """Each tile, what the layers before `end` need around it, and their input there."""
        side = self.sides[self.first]
        reach = reach_of(self.layers[self.first : end], side)
        for box in boxes(self.height, self.width, self.tile):
            outer = box.around(reach, self.height, self.width)
            yield box, outer, outer.of(self.x, side)


@torch.no_grad()
def _shapes(chain: Chain, x: Tensor) -> list[torch.Size]:
    """Of every layer's input and of the result, for one picture of _PROBE x _PROBE latents."""
    small = x.new_zeros(1, x.shape[1], _PROBE * chain.side, _PROBE * chain.side)
    shapes = [small.shape]
    for layer in chain.layers:
        small = run(layer, small)
        shapes.append(small.shape)
    return shapes


class _Reached(Exception):
    """Ends a layer's pass at the norm that is measured."""


def _input_of(norm: nn.GroupNorm, layer: nn.Module, x: Tensor) -> Tensor:
    """What the norm sees when its layer works on x."""

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _Reached(inputs[0])

    hook = norm.register_forward_pre_hook(stop)
    try:
        run(layer, x)
    except _Reached as reached:
        seen: Tensor = reached.args[0]
        return seen
    finally:
        hook.remove()
    raise AssertionError("the layer does not use its norm")

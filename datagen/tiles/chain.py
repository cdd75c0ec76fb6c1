"""A chain of layers with group norms and attention in tiles, exactly.

A group norm needs the whole picture's statistics, and attention its keys and values, so each costs
a pass over the tiles, up to where it stands: those before it are known by then. A pass begins at
the last place of the chain whose activations, of the whole picture, were kept: where they are few
enough, and always after attention, which takes the most time, and where latents begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from datagen.tiles.attention import KeysAndValues
from datagen.tiles.boxes import Assembled, Box, Part, Source, boxes
from datagen.tiles.norm_sums import NormSums, apply, release
from datagen.tiles.reach import reach_of
from datagen.tiles.run import Run, here

KEPT_BYTES = 128
"""For each pixel of the picture, of activations that are kept where nothing else is said."""
_PROBE = 2
"""Side of a small picture that tells the sizes of activations, latents."""

Scales = dict[tuple[int, str], tuple[Tensor, Tensor]]
"""Scale and shift of group norms by their layer's index and their name in it."""
LayersOf = Callable[[Any], list[nn.Module]]


class Chain:
    """A network's layers one after another, each a function of the result of the one before."""

    def __init__(self, network: Any, layers_of: LayersOf, side: int) -> None:
        """
        Args:
            side: places along a latent in the first layer's input.
        """
        self.network, self.layers_of, self.side = network, layers_of, side
        self.layers = layers_of(network)

    @torch.no_grad()
    def parts(
        self,
        source: Source,
        size: tuple[int, int],
        tile: int,
        keep: int | None = None,
        *,
        on_host: bool = False,
        run: Run = here,
    ) -> Iterator[Part]:
        """What the chain makes of a picture, tile by tile as `boxes` lists them; no gradient.

        Args:
            source: gives the picture, which need not be whole.
            size: (height, width) in latents.
            tile: side of a tile, latents.
            keep: bytes of activations between two layers that may be held of the whole picture;
                `KEPT_BYTES` a pixel when None.
            on_host: activations are held in the memory of the CPU.
            run: does the work on tiles, but for attention, which needs what all have given.
        """
        work = _Tiling(self, source, size, tile, keep, on_host, run)
        with ExitStack() as undo:
            for index, layer in enumerate(self.layers):
                for name, norm in _norms(layer):
                    seen = work.seen_by(name, index)
                    sums = reduce(torch.add, (part.result.cpu() for part in seen))
                    work.scales[index, name] = NormSums(norm, sums).scale_and_shift()
                if attends(layer):
                    asked = KeysAndValues(layer, *work.places(index))
                    for part in work.seen_by("to_k", index):
                        top, left = (each * part.side for each in (part.box.top, part.box.left))
                        asked.add(part.result, top, left)
                    for each in (layer.to_k, layer.to_v):
                        undo.callback(release, each)  # type: ignore[arg-type]
                    asked.apply()
            yield from work.tiles(len(self.layers))


def _norms(layer: nn.Module) -> list[tuple[str, nn.GroupNorm]]:
    named = layer.named_modules()
    return [(name, part) for name, part in named if isinstance(part, nn.GroupNorm)]


def attends(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Attention"


def forward(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer of a diffusers autoencoder makes of x (B, C, H, W)."""
    if type(layer).__name__ == "ResnetBlock2D":
        result: Tensor = layer(x, None)
    else:
        result = layer(x.contiguous() if attends(layer) else x)  # it takes no view of a larger one
    return result


@dataclass(frozen=True)
class _Work:
    """What is done with a tile: layers one after another, and one more up to a part of it."""

    layers_of: LayersOf
    first: int
    end: int
    """The layer after the last one."""
    sides: list[int]
    """Of a latent, in the input of every layer."""
    scales: Scales
    at: int | None = None
    """The layer whose input is kept."""
    part: str | None = None
    """Name in layer `end` of what is asked what it sees; None where the layer's input is wanted."""

    def __call__(self, network: Any, tile: tuple[Tensor, Box, Box]) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            tile: its pixels or activations (B, C, h, w), where it lies, and where they do.

        Returns:
            The inside of what comes of it, or the sums of a norm that sees it; what is kept.
        """
        x, box, outer = tile
        kept, layers = None, self.layers_of(network)
        with self._applied(layers):
            for index in range(self.first, self.end):
                x = forward(layers[index], x)
                if index + 1 == self.at:
                    kept = box.within(outer, x, self.sides[self.at])
            if self.part is None:
                return box.within(outer, x, self.sides[self.end]), kept
            layer = layers[self.end]
            part = layer.get_submodule(self.part)
            seen = box.within(outer, _input_of(part, layer, x), self.sides[self.end])
        if not isinstance(part, nn.GroupNorm):
            return seen, kept
        sums = NormSums(part)
        sums.add(seen)
        assert sums.sums is not None
        return sums.sums, kept

    @contextmanager
    def _applied(self, layers: list[nn.Module]) -> Iterator[None]:
        norms = {
            layers[index].get_submodule(name): scale
            for (index, name), scale in self.scales.items()
            if self.first <= index <= self.end
        }
        try:
            for norm, scale in norms.items():
                apply(norm, *scale)  # type: ignore[arg-type]
            yield
        finally:
            for norm in norms:
                release(norm)  # type: ignore[arg-type]


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
        run: Run,
    ) -> None:
        self.chain, self.size, self.tile, self.on_host = chain, size, tile, on_host
        self.run = run
        # A layer's input, whole, and which layer it is.
        self.source, self.first = source, 0
        self.scales: Scales = {}
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

    def seen_by(self, name: str, target: int) -> Iterator[Part]:
        """What a part of a layer sees of each tile, or its sums if it is a norm. Norms and
        attention before it have been applied."""
        at = max((place for place in self.kept if self.first < place <= target), default=None)
        kept = Assembled(*self.size, on_host=self.on_host)
        yield from self.tiles(target, name, at, kept)
        if at is not None and kept.whole is not None:
            self.source = partial(self._kept, kept.whole, self.sides[at])
            self.first = at

    def tiles(
        self,
        end: int,
        name: str | None = None,
        at: int | None = None,
        kept: Assembled | None = None,
    ) -> Iterator[Part]:
        """What the layers before `end` make of each tile, or a part of that one sees then; the
        input of layer `at` is kept."""
        layers = self.chain.layers[self.first : end + 1]
        reach = reach_of(layers, self.sides[self.first])
        places = [(box, box.around(reach, *self.size)) for box in boxes(*self.size, self.tile)]
        seen = ((self.source(outer).contiguous(), box, outer) for box, outer in places)
        work = _Work(self.chain.layers_of, self.first, end, self.sides, dict(self.scales), at, name)
        asks = any(attends(layer) for layer in self.chain.layers[self.first : end])
        results = (here if asks else self.run)(self.chain.network, work, seen)
        for (box, _), (result, inside) in zip(places, results, strict=True):
            if kept is not None and inside is not None:
                kept.put(Part(box, box, inside))
            yield Part(box, box, result)

    def _kept(self, whole: Tensor, side: int, box: Box) -> Tensor:
        return box.of(whole, side).to(self.device)


def _shapes(chain: Chain, one: Tensor) -> list[torch.Size]:
    """Of every layer's input and of the result, for one picture of _PROBE x _PROBE latents."""
    small = one.new_zeros(1, one.shape[1], _PROBE * chain.side, _PROBE * chain.side)
    shapes = [small.shape]
    for layer in chain.layers:
        small = forward(layer, small)
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
        forward(layer, x)
    except _Reached as reached:
        seen: Tensor = reached.args[0]
    else:
        raise AssertionError("the layer does not use the part")
    finally:
        hook.remove()
    if isinstance(part, nn.Linear):
        seen = seen.transpose(1, 2)
    return seen if seen.ndim == 4 else seen.unflatten(2, x.shape[-2:])  # inside of attention

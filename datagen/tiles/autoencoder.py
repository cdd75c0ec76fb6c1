"""Encoders and decoders of autoencoders in tiles, equal to what they make of the whole picture.

Where all are convolutions, as in diffusers' `AutoencoderTiny`, each tile sees all that decides
about it. `AutoencoderKL` has attention in the middle and group norms everywhere: its tiles share
exact norms, and attention looks at the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from datagen.tiles.boxes import Box, Part, Source, assembled
from datagen.tiles.chain import Chain
from datagen.tiles.reach import growth_of, reach_of, tiled_parts
from datagen.tiles.run import N, Run, X, Y, here


@dataclass(frozen=True)
class CodecTiles:
    """How a codec works on a large picture."""

    side: int
    """Of a tile, latents."""
    keep: int | None = None
    """Bytes of activations that `AutoencoderKL` may hold of the whole picture: more take less time.
    `KEPT_BYTES` for each pixel when None."""
    on_host: bool = False
    """Whether these are held in the memory of the CPU."""
    run: Run = here
    """Does the work on tiles, with the codec that was asked to."""

    def on_network(self, codec: Any, name: str) -> CodecTiles:
        """The same for one of the codec's networks, by its attribute's name."""
        return replace(self, run=partial(_run_on, self.run, codec, name))


def _run_on(
    run: Run, codec: Any, name: str, _: N, work: Callable[[N, X], Y], tiles: Iterable[X]
) -> Iterator[Y]:
    return run(codec, partial(_with, name, work), tiles)


def _with(name: str, work: Callable[[Any, X], Y], codec: Any, tile: X) -> Y:
    return work(getattr(codec, name), tile)


def encode_tiled(encoder: nn.Module, x: Tensor, tile: int, keep: int | None = None) -> Tensor:
    """Pixels (B, 3, H, W) -> `encoder(x)`, in tiles; no gradient through group norms.

    Args:
        tile: side of a tile, latents.
        keep: as in `CodecTiles`.

    Raises:
        ValueError: a side is no multiple of a latent's.
    """
    side = int(1 / growth_of([encoder]))
    if x.shape[-2] % side or x.shape[-1] % side:
        raise ValueError(f"a picture of {x.shape[-1]}x{x.shape[-2]} has sides that {side} divides")
    size = x.shape[-2] // side, x.shape[-1] // side
    source = partial(Box.of, tensor=x, side=side)
    return assembled(encode_parts(encoder, source, size, CodecTiles(tile, keep)), *size)


def decode_tiled(decoder: nn.Module, z: Tensor, tile: int, keep: int | None = None) -> Tensor:
    """Latents (B, C, h, w) -> `decoder(z)`, in tiles; arguments as for `encode_tiled`."""
    size, source = (z.shape[-2], z.shape[-1]), partial(Box.of, tensor=z)
    return assembled(decode_parts(decoder, source, size, CodecTiles(tile, keep)), *size)


def encode_parts(
    encoder: nn.Module, source: Source, size: tuple[int, int], tiles: CodecTiles
) -> Iterator[Part]:
    """What an encoder makes of a picture of (height, width) latents, tile by tile; the picture need
    not be whole."""
    return _parts(encoder, _layers_of_encoder, source, size, tiles, int(1 / growth_of([encoder])))


def decode_parts(
    decoder: nn.Module, source: Source, size: tuple[int, int], tiles: CodecTiles
) -> Iterator[Part]:
    """As `encode_parts`, of latents."""
    return _parts(decoder, _layers_of_decoder, source, size, tiles, 1)


def _parts(
    network: nn.Module,
    layers_of: Callable[[Any], list[nn.Module]],
    source: Source,
    size: tuple[int, int],
    tiles: CodecTiles,
    side: int,
) -> Iterator[Part]:
    """
    Args:
        side: places along a latent in the network's input.
    """
    if not sees_everything(network):
        reach = reach_of([network], side)
        return tiled_parts(network, source, size, tiles.side, reach, tiles.run)
    chain = Chain(network, layers_of, side)
    return chain.parts(source, size, tiles.side, tiles.keep, on_host=tiles.on_host, run=tiles.run)


def sees_everything(network: nn.Module) -> bool:
    """Whether all of a picture decides about each place, as in `AutoencoderKL`."""
    return hasattr(network, "mid_block")


def _layers_of_encoder(encoder: Any) -> list[nn.Module]:
    blocks = [part for block in encoder.down_blocks for part in _layers_of(block)]
    end = [encoder.conv_norm_out, encoder.conv_act, encoder.conv_out]
    return [encoder.conv_in, *blocks, *_layers_of_middle(encoder.mid_block), *end]


def _layers_of_decoder(decoder: Any) -> list[nn.Module]:
    blocks = [part for block in decoder.up_blocks for part in _layers_of(block)]
    end = [decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
    return [decoder.conv_in, *_layers_of_middle(decoder.mid_block), *blocks, *end]


def _layers_of(block: Any) -> Iterator[nn.Module]:
    for resnet, attention in zip_longest(block.resnets, getattr(block, "attentions", None) or ()):
        yield resnet
        if attention is not None:
            yield attention
    for name in ("downsamplers", "upsamplers"):
        yield from getattr(block, name, None) or ()


def _layers_of_middle(block: Any) -> Iterator[nn.Module]:
    yield block.resnets[0]
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield attention
        yield resnet

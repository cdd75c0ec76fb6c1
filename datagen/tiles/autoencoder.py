"""Encoders and decoders of autoencoders in tiles, equal to what they make of the whole picture.

Where all are convolutions, as in diffusers' `AutoencoderTiny`, each tile sees all that decides
about it. `AutoencoderKL` has attention in the middle and group norms everywhere: what works at the
size of the latents runs on the whole picture, the rest in tiles that share exact norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from datagen.tiles.chain import Chain
from datagen.tiles.reach import growth_of, reach_of, tiled


@dataclass(frozen=True)
class CodecTiles:
    """How a codec works on a large picture."""

    side: int
    """Of a tile, latents."""
    keep: int | None = None
    """Bytes of activations that `AutoencoderKL` may hold of the whole picture: more take less time.
    `KEPT_BYTES` for each pixel when None."""


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
    if not _is_kl(encoder):
        return tiled(encoder, x, tile, reach=reach_of([encoder], side), inside=side)
    layers = _layers_of_encoder(encoder)
    end = max((at + 1 for at, layer in enumerate(layers) if _resizes(layer)), default=0)
    end = min([end, *(at for at, layer in enumerate(layers) if _attends(layer))])
    return Chain(layers[end:], 1)(Chain(layers[:end], side).tiled(x, tile, keep))


def decode_tiled(decoder: nn.Module, z: Tensor, tile: int, keep: int | None = None) -> Tensor:
    """Latents (B, C, h, w) -> `decoder(z)`, in tiles; arguments as for `encode_tiled`."""
    side = int(growth_of([decoder]))
    if not _is_kl(decoder):
        return tiled(decoder, z, tile, reach=reach_of([decoder], 1), outside=side)
    layers = _layers_of_decoder(decoder)
    start = min((at for at, layer in enumerate(layers) if _resizes(layer)), default=len(layers))
    start = max([start, *(at + 1 for at, layer in enumerate(layers) if _attends(layer))])
    parted = Chain(layers[start:], int(growth_of(layers[:start])))
    return parted.tiled(Chain(layers[:start], 1)(z), tile, keep)


def _is_kl(network: nn.Module) -> bool:
    return hasattr(network, "mid_block")


def _layers_of_encoder(encoder: Any) -> list[nn.Module]:
    blocks = [part for block in encoder.down_blocks for part in _parts(block)]
    end = [encoder.mid_block, encoder.conv_norm_out, encoder.conv_act, encoder.conv_out]
    return [encoder.conv_in, *blocks, *end]


def _layers_of_decoder(decoder: Any) -> list[nn.Module]:
    blocks = [part for block in decoder.up_blocks for part in _parts(block)]
    end = [decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
    return [decoder.conv_in, decoder.mid_block, *blocks, *end]


def _parts(block: nn.Module) -> Iterator[nn.Module]:
    """The layers of a block; itself where it attends."""
    if _attends(block):
        yield block
        return
    for name in ("resnets", "downsamplers", "upsamplers"):
        yield from getattr(block, name, None) or ()


def _resizes(layer: nn.Module) -> bool:
    return growth_of([layer]) != 1


def _attends(layer: nn.Module) -> bool:
    return any(type(part).__name__ == "Attention" for part in layer.modules())

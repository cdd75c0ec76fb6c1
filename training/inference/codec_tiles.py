"""A codec of ELIR in tiles: what one picture at once would give, in less memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from training.elir.codec import TINY_REACH
from training.elir.tiles import tiled


def encode_tiled(
    encoder: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    *,
    downsample: int = 8,
    reach: int = TINY_REACH,
) -> Tensor:
    """Pixels (B, 3, H, W) -> `encoder(x)`, in tiles of `tile` latents and `reach` around them."""
    return tiled(encoder, x, tile, reach=reach, inside=downsample)


def decode_tiled(
    decoder: Callable[[Tensor], Tensor],
    z: Tensor,
    tile: int,
    *,
    downsample: int = 8,
    reach: int = TINY_REACH,
) -> Tensor:
    """Latents (B, C, h, w) -> `decoder(z)`, in tiles of `tile` latents and `reach` around them."""
    return tiled(decoder, z, tile, reach=reach, outside=downsample)

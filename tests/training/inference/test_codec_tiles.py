"""Tiles of the codec and of the coarse estimator equal the whole, wherever they are cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from datagen.tiles.reach import tiled
from tests.training.elir.small_networks import CHANNELS, double, pixels, small_networks
from training.elir.coarse_estimator import COARSE_REACH
from training.elir.codec import TINY_REACH
from training.inference.codec_tiles import decode_tiled, encode_tiled

NETS = small_networks()
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def encode(tile: int, reach: int | None = None) -> tuple[Tensor, Tensor]:
    x, encoder = pixels(1, 3, 8 * 45, 8 * 24), NETS.encoder
    if reach is None:
        return encode_tiled(encoder, x, tile), encoder(x)
    return tiled(encoder, x, tile, reach=reach, inside=8), encoder(x)


def decode(tile: int, reach: int | None = None) -> tuple[Tensor, Tensor]:
    z, decoder = double(1, CHANNELS, 45, 24), NETS.decoder
    if reach is None:
        return decode_tiled(decoder, z, tile), decoder(z)
    return tiled(decoder, z, tile, reach=reach), decoder(z)


def estimate(tile: int, reach: int | None) -> tuple[Tensor, Tensor]:
    z = 10 * double(1, CHANNELS, 104, 44)
    assert reach is not None
    return tiled(NETS.coarse, z, tile, reach=reach), NETS.coarse(z)


@pytest.mark.parametrize("tile", [15, 32])
@pytest.mark.parametrize(
    ("part", "reach"),
    [
        (encode, None),
        (decode, None),
        (encode, TINY_REACH),
        (decode, TINY_REACH),
        (estimate, COARSE_REACH),
    ],
)
@torch.no_grad()
def test_tiles_equal_the_whole(
    part: Callable[[int, int | None], tuple[Tensor, Tensor]], reach: int | None, tile: int
) -> None:
    tiles, whole = part(tile, reach)
    torch.testing.assert_close(tiles, whole, **EXACT)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [encode, decode])
@torch.no_grad()
def test_less_around_them_would_show(part: Callable[[int, int], tuple[Tensor, Tensor]]) -> None:
    tiles, whole = part(15, 5)
    assert not torch.allclose(tiles, whole, **EXACT)  # type: ignore[arg-type]


def test_no_network_sees_more_than_a_tile_and_its_reach() -> None:
    seen: list[tuple[int, int]] = []

    def network(x: Tensor) -> Tensor:
        seen.append((x.shape[-2], x.shape[-1]))
        return x

    x = double(1, 1, 50, 30)
    assert torch.equal(tiled(network, x, 20, reach=3), x)
    assert max(height for height, _ in seen) == 26 and len(seen) == 6

"""Tiles in batches: the same bits for every number of them, whatever a network's kernels do."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.networks import ATTENTION, tiny_net
from training.inference.tiles.tiler import Tiler
from training.inference.tiles.transfers import ahead, to_host

TILE = 256
"""Pixels: 32 latents."""


def _tiled(tiler: Tiler, net: nn.Module, x: Tensor, seen: list[int] | None = None) -> Tensor:
    times = torch.full((1,), 0.7), torch.full((1,), 0.3)

    def fn(part: Tensor) -> Tensor:
        if seen is not None:
            seen.append(len(part))
        if not isinstance(net, _Small):
            return net(part, *(time.expand(len(part)) for time in times))
        return net(part)

    return tiler(net, fn, x, pixels=8, multiple=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, ATTENTION])
@torch.inference_mode()
def test_bytes_are_the_same_for_every_number_of_tiles(
    changes: dict[str, Any], dtype: torch.dtype
) -> None:
    net, x = tiny_net(**changes).to(dtype), torch.randn(1, 12, 64, 88)
    alone = _tiled(Tiler(tile=TILE, batch=1), net, x)
    for count in (2, 3, 5):
        tiler = Tiler(tile=TILE, batch=count)
        assert torch.equal(_tiled(tiler, net, x), alone), count
        assert torch.equal(_tiled(tiler, net, x), alone), count  # with what was found about layers
        assert not any("forward" in vars(module) for module in net.modules())


class _Small(nn.Module):
    """Its results are those of every tile for itself, but where a test says otherwise."""

    def __init__(self, layer: nn.Module | None = None, *, together: float = 0.0) -> None:
        super().__init__()
        self.norm, self.layer, self.together = nn.GroupNorm(1, 3), layer, together

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) if self.layer is None else self.layer(self.norm(x))
        return x + self.together * (len(x) - 1)


class _Counting(nn.Conv2d):
    """Rounds by the number of tiles, as a kernel may."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * len(x)


X = torch.randn(1, 3, 64, 160, generator=torch.Generator().manual_seed(0))
SHAPE = torch.Size([4, 3, 32, 32])


@torch.inference_mode()
def test_tiles_run_together_and_those_left_over_alone() -> None:
    seen, tiler, net = list[int](), Tiler(tile=TILE, batch=4), _Small()
    expected = _tiled(Tiler(tile=TILE), net, X, seen)
    tiles = len(seen) // 2
    assert set(seen) == {1}, "a CPU takes one at a time"
    assert torch.equal(_tiled(tiler, net, X), expected)
    seen.clear()
    assert torch.equal(_tiled(tiler, net, X, seen), expected)
    assert seen == 2 * ([4] * (tiles // 4) + [1] * (tiles % 4)) and tiles % 4


@torch.inference_mode()
def test_a_layer_that_rounds_by_their_number_sees_one_tile_at_a_time() -> None:
    net, tiler = _Small(_Counting(3, 3, 1)), Tiler(tile=TILE, batch=4)
    expected = _tiled(Tiler(tile=TILE), net, X)
    for _ in range(2):
        assert torch.equal(_tiled(tiler, net, X), expected)
    assert tiler.batches.alone[net, "shared", SHAPE] == {net.layer}


@torch.inference_mode()
def test_a_network_that_rounds_by_their_number_sees_one_tile_at_a_time() -> None:
    seen, net, tiler = list[int](), _Small(together=1e-6), Tiler(tile=TILE, batch=4)
    expected = _tiled(Tiler(tile=TILE), net, X)
    assert torch.equal(_tiled(tiler, net, X), expected)
    assert torch.equal(_tiled(tiler, net, X, seen), expected)
    assert tiler.batches.alone[net, "shared", SHAPE] is None
    assert 4 in seen, "what its norms see is the same"


class _Full(_Small):
    """As if memory held two tiles."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError
        return super().forward(x)


@torch.inference_mode()
def test_a_batch_is_halved_before_its_tiles_are(caplog: pytest.LogCaptureFixture) -> None:
    tiler = Tiler(tile=TILE, batch=5)
    with caplog.at_level(logging.WARNING):
        result = _tiled(tiler, _Full(), X)
        assert torch.equal(_tiled(tiler, _Full(), X), result)
    assert torch.equal(result, _tiled(Tiler(tile=TILE), _Small(), X))
    assert tiler.tile == TILE
    assert [record.message for record in caplog.records] == [
        "memory was full: going on with 2 tiles at a time"
    ]


@torch.inference_mode()
def test_of_a_batch_only_what_is_not_finite_is_done_again() -> None:
    class Overflowing(_Small):
        def forward(self, x: Tensor) -> Tensor:
            deep = self.norm.weight.dtype == torch.float32
            again.extend([len(x)] * deep)
            x = x if deep else torch.where(x > 30, torch.inf, x)
            return self.norm(x.to(self.norm.weight.dtype)).float()

    again, x = list[int](), X.clone()
    x[..., 5, 5] = 40
    net = Overflowing().to(torch.bfloat16)
    expected = _tiled(Tiler(tile=TILE), net, x)
    assert again == [1, 1]
    assert torch.equal(_tiled(Tiler(tile=TILE, batch=4), net, x), expected)
    assert again == [1] * 4


def test_on_a_cpu_tiles_stay_where_they_are() -> None:
    read = list[int]()

    def tiles() -> Any:
        for tile in X.split(1, dim=1):
            read.append(len(read))
            yield tile

    for number, tile in enumerate(ahead(tiles(), torch.device("cpu"))):
        assert tile.data_ptr() == X[:, number].data_ptr() and len(read) == number + 1
    assert to_host(X) is X

"""Tiles: where they lie, that blending loses nothing, and that norms are those of the picture."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from tests.support.networks import ATTENTION, tiny_net
from training.inference.tiles import memory as tile_memory
from training.inference.tiles.shared_norms import SharedNorms, added
from training.inference.tiles.tiler import Tiler
from training.inference.tiling import blend, tile_plan, tiles
from training.monitoring.memory import MemoryModel, PeakBytes


@pytest.mark.parametrize(
    ("tile", "overlap", "multiple"), [(8, 0, 1), (8, 7, 1), (40, 8, 4), (64, 9, 2)]
)
def test_tiles_are_the_fewest_whole_ones_evenly_spaced(
    tile: int, overlap: int, multiple: int
) -> None:
    for length in range(1, 400):
        starts = tile_plan(length, tile, overlap, multiple)
        if length <= tile:
            assert starts == [0]
            continue
        padded = -(-length // multiple) * multiple
        steps = [second - first for first, second in itertools.pairwise(starts)]
        assert starts[0] == 0 and starts[-1] + tile == padded
        assert all(start % multiple == 0 for start in starts)
        assert max(steps) - min(steps) <= multiple
        assert max(steps) <= tile - overlap
        fewer = len(starts) - 1  # would leave a place uncovered, or share less than the overlap
        assert fewer * tile - (fewer - 1) * -(-overlap // multiple) * multiple < padded


@pytest.mark.parametrize(("overlap", "multiple"), [(8, 1), (-1, 1), (5, 4)])
def test_an_overlap_that_leaves_nothing_of_a_tile_is_refused(overlap: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"overlap={overlap}"):
        tile_plan(100, 8, overlap, multiple)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (16, 70), (61, 33)])
@pytest.mark.parametrize("overlap", [0, 5, 11])
def test_a_function_of_single_places_is_the_same_in_tiles(
    height: int, width: int, overlap: int
) -> None:
    x = torch.randn(2, 3, height, width)
    result = blend(lambda part: part[:, :2] ** 2, x, 16, overlap)
    torch.testing.assert_close(result, x[:, :2] ** 2, rtol=1e-6, atol=1e-6)


def test_weights_change_in_overlaps_only() -> None:
    parts = tiles(10, 40, 16, 4)
    assert [part.columns.start for part in parts] == [0, 12, 24]
    total = torch.zeros(10, 40)
    for part in parts:
        part.of(total).add_(part.weight)
        assert (part.weight > 0).all() and (part.weight[:, 4:12] == 1).all()
    torch.testing.assert_close(total, torch.ones(10, 40))


class _Pointwise(nn.Module):
    """Its only context is its group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.norm(self.first(x)))


def test_shared_norms_are_those_of_the_whole_picture() -> None:
    net, x = _Pointwise(), torch.randn(1, 3, 24, 32) + torch.linspace(-3, 3, 32)
    norms = SharedNorms(net)
    with torch.no_grad():
        whole = net(x)
        own = blend(net, x, 8, 0)
        found = []
        for part in tiles(24, 32, 8, 0):
            with norms.measuring() as sums:
                net(part.of(x))
            found.append(sums)
        with norms.applied(norms.scales(added(found))):
            shared = blend(net, x, 8, 0)
        assert torch.equal(net(x), whole)  # nothing is left behind
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-5)
    assert (own - whole).abs().max() > 0.5


def _picture(height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    coarse, fine = (generator.integers(0, 256, (n, n, 3), dtype=np.uint8) for n in (4, 48))
    layers = [cv2.resize(one, (width, height)).astype(float) for one in (coarse, fine)]
    return (0.7 * layers[0] + 0.3 * layers[1]).astype(np.uint8)


@pytest.mark.parametrize("changes", [{}, ATTENTION])
@torch.no_grad()
def test_tiles_of_a_network_agree_where_they_meet(changes: dict[str, list[int]]) -> None:
    net, t = tiny_net(**changes), torch.ones(1)
    picture = torch.from_numpy(_picture(96, 160)).permute(2, 0, 1)[None].float() / 127.5 - 1
    x = picture.repeat(1, 4, 1, 1)

    def fn(part: Tensor) -> Tensor:
        return net(part, t, 0 * t)

    whole = fn(x)
    own = blend(fn, x, 40, 8, multiple=2) - whole
    shared = Tiler(tile=320)(net, fn, x, pixels=8, multiple=net.downsample) - whole
    assert 0 < shared.square().mean() < 0.25 * own.square().mean()


def _counted(limit: int, seen: list[int]) -> Callable[[Tensor], Tensor]:
    def fn(part: Tensor) -> Tensor:
        seen.append(part.shape[-1])
        if part.shape[-2] * part.shape[-1] > limit:
            raise torch.OutOfMemoryError
        return part

    return fn


def test_tiles_are_halved_while_memory_is_full(caplog: pytest.LogCaptureFixture) -> None:
    x, seen = torch.randn(1, 3, 200, 300), list[int]()
    tiler = Tiler(tile=8 * 280)
    with caplog.at_level(logging.WARNING):
        result = tiler(nn.Identity(), _counted(100**2, seen), x, pixels=8, multiple=1)
        tiler(nn.Identity(), _counted(100**2, seen), x, pixels=8, multiple=1)
    torch.testing.assert_close(result, x)
    assert [seen[0], seen[1], seen[2]] == [280, 140, 70] and seen.count(280) == 1
    assert [record.message for record in caplog.records] == [
        "memory was full: going on with tiles of 1120 pixels",
        "memory was full: going on with tiles of 560 pixels",
    ]


def test_memory_too_small_for_any_tile_is_told() -> None:
    x = torch.randn(1, 3, 200, 300)
    with pytest.raises(FlowmapsrError, match="too small for a tile of 256 pixels"):
        Tiler(tile=1024)(nn.Identity(), _counted(1, []), x, pixels=8, multiple=1)


@torch.no_grad()
def test_a_picture_is_tiled_only_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, sizes = tiny_net(), torch.randn(1, 12, 160, 160), list[tuple[int, int]]()
    t = torch.ones(1)

    def fn(part: Tensor) -> Tensor:
        sizes.append((part.shape[-2], part.shape[-1]))
        return net(part, t, 0 * t)

    with PeakBytes() as whole:
        fn(x)
    memory = MemoryModel(fn, x[..., :32, :32], x[..., :64, :64])
    assert memory.places(1.35 * whole.peak) >= 160**2 > memory.places(1.1 * whole.peak)

    sizes.clear()
    Tiler()(net, fn, x, pixels=8, multiple=net.downsample)
    assert sizes == [(32, 32), (64, 64), (160, 160)]
    sizes.clear()
    Tiler(max_memory=1)(net, fn, x, pixels=8, multiple=net.downsample)
    assert set(sizes[2:]) == {(32, 32)}
    sizes.clear()
    monkeypatch.setattr(tile_memory, "used_bytes", lambda device: 0)
    most = int(memory.bytes(150**2)) + 12 * x.numel()
    Tiler(max_memory=most)(net, fn, x, pixels=8, multiple=net.downsample)
    assert set(sizes[2:]) == {(128, 128)}, "larger ones take longer on a CPU"


class _Overflowing(nn.Module):
    """As networks in bf16 may, in bright places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 3)
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.norm.weight.dtype == torch.float32
        bright = x if deep else torch.where(x > 3, torch.inf, x)
        return self.norm(bright.to(self.norm.weight.dtype)).float()


@pytest.mark.parametrize("tile", [4096, 256])
@torch.no_grad()
def test_what_is_not_finite_is_done_again_in_fp32_and_told_once(
    caplog: pytest.LogCaptureFixture, tile: int
) -> None:
    net, x = _Overflowing(), torch.randn(1, 3, 40, 40).clamp(-1, 1)
    x[..., 3, 5] = 4
    tiler = Tiler(tile=tile)
    with caplog.at_level(logging.WARNING):
        results = [tiler(net, net, x, pixels=8, multiple=1) for _ in range(2)]
    expected = _Overflowing().float()(x)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)
    assert net.norm.weight.dtype == torch.bfloat16
    assert [record.message for record in caplog.records] == [
        "the network gave values that are not finite: such tiles are done in fp32"
    ]

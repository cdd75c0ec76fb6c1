"""What batches of tiles and CUDA graphs save of a network's evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tests.benchmarks.gpu.clock import Clock
from tests.benchmarks.gpu.measure_steps import COMPILE_SECONDS, SHAPE, TINY_MODEL
from tests.benchmarks.gpu.options import device, device_name
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.one_step import free_memory, median_seconds, new_network, peak_memory
from training.flowmap.network import FlowMapNet
from training.flowmap.unet_backends import run_by
from training.inference.tiles.tiler import Tiler
from training.settings.evaluation import Backend
from training.settings.model import ModelSettings

SMALL = ModelSettings(
    block_channels=(128, 224, 320), transformer_layers=(0, 1, 2), attention_heads=(4, 7, 10)
)
"""That of `flowmapsr-small`: 60 M parameters, whose kernels are short."""
SIDE, TINY_SIDE = 4096, 640
"""Of the picture in tiles, pixels."""
TILES, TINY_TILES = (512, 1024), (256,)
BATCHES, TINY_BATCHES = (1, 2, 4, 8), (1, 2)
WHOLE_SIDES, TINY_WHOLE_SIDES = (512, 1024, 2048), (64,)


@dataclass(frozen=True)
class TileParts:
    """The part of `measure` that is about the tiles and graphs of a small network."""

    results: Results
    clock: Clock
    tiny: bool

    @property
    def times(self) -> dict[str, int]:
        return {"warm": 1, "timed": 1} if self.tiny else {"warm": 2, "timed": 5}

    def tiles(self) -> None:
        self._batches()
        self._graphs()

    @torch.inference_mode()
    def _batches(self) -> None:
        side = TINY_SIDE if self.tiny else SIDE
        self.results.table(
            f"An evaluation of {side}x{side} pixels in tiles, bf16, {device_name()}",
            *("tile", "at a time", "s", "over one at a time", "same bits", "convolutions alone"),
            "memory GB",
        )
        net, x = self._network(), _latents(side)
        for tile in TINY_TILES if self.tiny else TILES:
            expected, first = None, 0.0
            for batch in TINY_BATCHES if self.tiny else BATCHES:
                with self.results.attempt(tile, batch):
                    self.clock.require()
                    free_memory(device())
                    tiler = Tiler(tile=tile, batch=batch)
                    work = partial(
                        *(tiler, net, partial(_velocity, net), x),
                        **{"pixels": SHAPE.downsample, "multiple": net.downsample},
                    )
                    found = work()
                    expected = found if expected is None else expected
                    seconds = median_seconds(work, device(), **self.times)
                    first = first or seconds
                    same = torch.equal(found, expected)
                    self.results.row(
                        *(tile, batch, f"{seconds:.3f}", f"{seconds / first:.2f}", same),
                        *(_said(tiler), peak_memory(device())),
                    )

    @torch.inference_mode()
    def _graphs(self) -> None:
        self.results.table(
            f"An evaluation in one piece, bf16, {device_name()}",
            *("side", "backend", "ms", "first s", "memory GB"),
        )
        backends: tuple[Backend, ...] = ("torch",) if self.tiny else ("torch", "compile")
        for backend in backends:
            net = self._network()
            run_by(net.unet, backend)
            for side in TINY_WHOLE_SIDES if self.tiny else WHOLE_SIDES:
                with self.results.attempt(side, backend):
                    self.clock.require(0.0 if backend == "torch" else COMPILE_SECONDS)
                    free_memory(device())
                    work = partial(_velocity, net, _latents(side))
                    first = median_seconds(work, device(), warm=0, timed=1)
                    seconds = median_seconds(work, device(), **self.times)
                    self.results.row(
                        *(side, backend, f"{1000 * seconds:.2f}", f"{first:.1f}"),
                        peak_memory(device()),
                    )

    def _network(self) -> FlowMapNet:
        settings = TINY_MODEL if self.tiny else SMALL
        return new_network(settings, SHAPE.channels, device()).eval().to(torch.bfloat16)


def _said(tiler: Tiler) -> str:
    """Convolutions that see one tile at a time, of each kind of work."""
    return ", ".join(
        f"{kind} {'all' if layers is None else sum(isinstance(one, nn.Conv2d) for one in layers)}"
        for (_, kind, _), layers in tiler.batches.alone.items()
    )


def _velocity(net: FlowMapNet, x: Tensor) -> Tensor:
    times = torch.ones(len(x), device=x.device)
    return net(x, times, 0 * times)


def _latents(side: int) -> Tensor:
    return torch.randn(1, SHAPE.channels, *2 * (side // SHAPE.downsample,), device=device())

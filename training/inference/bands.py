"""Restores a picture whose pixels are never whole in memory: they come and go in rows, and only its
latents are held. Codec and network run in tiles: those of the codec change nothing, and those of
the network share their group norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Box
from datagen.tiles.run import Run
from training.inference.pictures.rows import Rows
from training.inference.tiles.network_pass import TilePass
from training.inference.tiles.tiler import Key, PassKey, Tiler
from training.inference.tiles.transfers import to_host
from training.inference.watch import Watch
from training.monitoring.memory import free_bytes, used_bytes
from training.restorer_protocol import LatentPass, Parts

_TILE = 1024
"""Side of a codec's tile where none is asked for, pixels."""
_SMALLEST = 256
"""The same where memory is scarce, at least."""
_BAND_BYTES = 100
"""For each pixel of a row of tiles: what is made of it until it is written (measured)."""
_SHARE = 0.7
"""Of the free memory that latents may take."""
_KEPT_SHARE = 0.3
"""Of what is free then, that activations of the codec may take; those kept next come
beside them."""


class BandRestorer:
    """One restorer on large pictures."""

    def __init__(self, parts: Parts, device: torch.device, tiler: Tiler) -> None:
        self.parts, self.device, self.tiler = parts, device, tiler

    @torch.inference_mode()
    def __call__(
        self, lq: Rows, shape: tuple[int, int], steps: int, watch: Watch
    ) -> Iterator[Tensor]:
        """The HQ estimate in parts from top to bottom, (3, rows, W) float32 on the CPU.

        Args:
            lq: an LQ picture at its target size, uint8 or uint16.
            shape: its (height, width), multiples of what the restorer needs.

        Raises:
            FlowmapsrError: its latents do not fit into memory.
        """
        self.parts.require(shape)
        watch.begin(steps)
        latents = self._encoded(lq, shape)
        for number, step in enumerate(self.parts.passes(steps)):
            self._pass(step, latents, watch, self.tiler.runs(PassKey(steps, number)))
            if step.is_step:
                watch.step()

        def seen(box: Box) -> Tensor:
            return box.of(latents).to(self.device)

        size = latents.shape[-2], latents.shape[-1]
        for rows in self.parts.codec.decode_rows(seen, size, self._tiles(shape[1])):
            yield rows[0].float().cpu()

    def _encoded(self, lq: Rows, shape: tuple[int, int]) -> Tensor:
        """The latents (1, C, h, w), float32 on the CPU."""
        down = self.parts.downsample
        size = shape[0] // down, shape[1] // down
        latents = _held(self.parts.channels, *size)
        read, top = _remembered(lq), 0

        def seen(box: Box) -> Tensor:
            levels = read(slice(box.top * down, box.bottom * down))
            return _signal(levels[:, box.left * down : box.right * down], self.device)

        for rows in self.parts.codec.encode_rows(seen, size, self._tiles(shape[1])):
            latents[..., top : top + rows.shape[-2], :] = rows
            top += rows.shape[-2]
        return latents

    def _pass(self, step: LatentPass, latents: Tensor, watch: Watch, run: Run) -> None:
        """Replaces the latents by the next ones."""
        of_tile = _on_device(step, self.device)
        if step.net is None:
            latents.copy_(step.update(latents, of_tile(latents)))
            return
        down = self.parts.downsample
        # A row of tiles is held four times while it is blended and becomes the next latents.
        row = 4 * latents[0, :, 0].numel() * _TILE // down
        held = 4 * row if self.device.type == "cpu" else 0
        for rows, part in self.tiler.rows(
            step.net,
            of_tile,
            latents,
            pixels=down,
            multiple=step.multiple,
            held=held,
            on_part=watch.part,
            run=run,
        ):
            latents[..., rows, :] = step.update(latents[..., rows, :], part)

    def _tiles(self, width: int) -> CodecTiles:
        """Of the codec, in a picture of `width` pixels: as large as those of the network, and where
        memory may decide, so small that a row of them takes no more than half of it."""
        run, down = self.tiler.runs(None), self.parts.downsample
        if self.tiler.fixed:
            keep = int(_KEPT_SHARE * (self.tiler.max_memory or 0))
            return CodecTiles((self.tiler.tile or _TILE) // down, keep, on_host=True, run=run)
        cpu = torch.device("cpu")
        free = free_bytes(cpu)
        if self.tiler.max_memory is not None and self.device == cpu:
            free = min(free, max(0, self.tiler.max_memory - used_bytes(cpu)))
        fitting = max(_SMALLEST, int(free / 2 / (_BAND_BYTES * width)))
        side = max(1, min(self.tiler.tile or _TILE, fitting) // down)
        return CodecTiles(side, keep=int(_KEPT_SHARE * free), on_host=True, run=run)


def network_for(key: Key, parts: Parts, device: torch.device) -> Any:
    """What does the work on tiles that a `BandRestorer` of the same model has for this key."""
    if key is None:
        return parts.codec
    step = next(islice(parts.passes(key.steps), key.number, None))
    assert step.net is not None, "it works on no tiles"
    return TilePass(step.net, _on_device(step, device))


def _on_device(step: LatentPass, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda x: to_host(step.fn(x.to(device)))


def _held(channels: int, height: int, width: int) -> Tensor:
    needed = 4 * channels * height * width
    free = psutil.virtual_memory().available
    if needed > _SHARE * free:
        raise FlowmapsrError(
            f"the latents of such a picture take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
            "memory are free: use a smaller scale, cut the picture, or use a machine with more"
        )
    return torch.empty(1, channels, height, width)


def _remembered(rows: Rows) -> Rows:
    """The rows asked for last are kept: tiles side by side ask for the same ones."""
    last: tuple[slice, np.ndarray] | None = None

    def of(wanted: slice) -> np.ndarray:
        nonlocal last
        if last is None or last[0] != wanted:
            last = wanted, rows(wanted)
        return last[1]

    return of


def _signal(levels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 or uint16 (H, W, 3) -> (1, 3, H, W) in [-1, 1]."""
    top = np.iinfo(levels.dtype).max
    tensor = torch.from_numpy(np.ascontiguousarray(levels)).to(device)
    return tensor.permute(2, 0, 1)[None].float().div_(top / 2).sub_(1)

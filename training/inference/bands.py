"""Restores a picture whose pixels are never whole in memory: they come and go in rows, and only its
latents are held. Codec and network run on tiles, which share their group norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import psutil
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from training.inference.rows import Rows
from training.inference.shared_norms import SharedNorms
from training.inference.tiler import Tiler
from training.inference.tiling import Tile, blended_rows, tiles
from training.inference.watch import Watch
from training.system_protocol import CodecPart, LatentPass, Parts

_TILE = 1024
"""Side of a codec's tile where none is asked for, pixels."""
_REACH = 8
"""Latents that a codec's network sees around a tile, and tiles share. AutoencoderKL needs more, but
less than a millionth of the signal comes from there (112 dB)."""
_SHARE = 0.7
"""Of the free memory that latents may take."""


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
        watch.begin(steps)
        latents = self._encoded(lq, shape)
        for step in self.parts.passes(steps):
            self._pass(step, latents, watch)
            watch.step()
        down, decode = self.parts.downsample, self.parts.decode
        overlap, reach = self._around(decode)

        def decoded(place: Tile) -> Tensor:
            rows, columns = (_divided(side, down) for side in (place.rows, place.columns))
            seen = _grown(rows, reach, latents.shape[-2]), _grown(columns, reach, latents.shape[-1])
            made = decode.fn(latents[..., seen[0], seen[1]].to(self.device))
            return _inside(made, (rows, columns), seen, down)

        plan = tiles(*shape, self._side(reach) * down, overlap * down, down)
        for _, part in self._codec_rows(decode, decoded, plan):
            yield part[0]

    def _encoded(self, lq: Rows, shape: tuple[int, int]) -> Tensor:
        """The latents (1, C, h, w), float32 on the CPU."""
        down, encode = self.parts.downsample, self.parts.encode
        height, width = (length // down for length in shape)
        overlap, reach = self._around(encode)
        latents = _held(self.parts.channels, height, width)
        read = _remembered(lq)

        def encoded(place: Tile) -> Tensor:
            seen = _grown(place.rows, reach, height), _grown(place.columns, reach, width)
            pixels = read(_times(seen[0], down))[:, _times(seen[1], down)]
            made = encode.fn(_signal(pixels, self.device))
            return _inside(made, (place.rows, place.columns), seen, 1)

        plan = tiles(height, width, self._side(reach), overlap)
        for rows, part in self._codec_rows(encode, encoded, plan):
            latents[..., rows, :] = part
        return latents

    def _pass(self, step: LatentPass, latents: Tensor, watch: Watch) -> None:
        """Replaces the latents by the next ones."""

        def of_tile(x: Tensor) -> Tensor:
            return step.fn(x.to(self.device)).cpu()

        down = self.parts.downsample
        for rows, part in self.tiler.rows(
            step.net, of_tile, latents, pixels=down, multiple=step.multiple, on_part=watch.part
        ):
            latents[..., rows, :] = step.update(latents[..., rows, :], part)

    def _codec_rows(
        self, part: CodecPart, fn: Callable[[Tile], Tensor], plan: list[Tile]
    ) -> Iterator[tuple[slice, Tensor]]:
        norms = None if part.network is None else SharedNorms(part.network)
        shared = norms is not None and bool(norms.norms) and len(plan) > 1
        if norms is not None and shared:
            with norms.measuring():
                for place in plan:
                    fn(place)
        with norms.applied() if norms is not None and shared else nullcontext():
            yield from blended_rows(lambda place: fn(place).float().cpu(), plan)

    def _around(self, part: CodecPart) -> tuple[int, int]:
        """Latents that tiles share, and that they see beyond their own."""
        return (0, 0) if part.network is None else (_REACH, _REACH)

    def _side(self, reach: int) -> int:
        """Of a codec's tile, latents."""
        seen = (self.tiler.tile or _TILE) // self.parts.downsample
        return max(seen - 2 * reach, 2 * _REACH)


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


def _inside(
    made: Tensor, wanted: tuple[slice, slice], seen: tuple[slice, slice], side: int
) -> Tensor:
    """What was wanted of a result that shows what was seen, whose places have `side` results."""
    rows, columns = (
        slice((one.start - all.start) * side, (one.stop - all.start) * side)
        for one, all in zip(wanted, seen, strict=True)
    )
    return made[..., rows, columns]


def _grown(side: slice, reach: int, length: int) -> slice:
    return slice(max(0, side.start - reach), min(length, side.stop + reach))


def _times(side: slice, factor: int) -> slice:
    return slice(side.start * factor, side.stop * factor)


def _divided(side: slice, factor: int) -> slice:
    return slice(side.start // factor, side.stop // factor)

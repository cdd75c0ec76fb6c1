"""A codec on pictures of any size: whole while that fits into memory, else in tiles, which change
nothing but rounding."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec
from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Box
from training.monitoring.memory import foretold_bytes, free_bytes, is_out_of_memory, used_bytes

log = logging.getLogger(__name__)

_SIDES = (2048, 1024, 512, 256)
"""Of tiles that are tried, pixels."""
_AROUND = 128
"""Pixels that a tile may see on each side: few need more, and that only of the last layers."""
_SHARE = 0.7
"""Of the free memory that may be taken."""

Pass = Callable[[Tensor, CodecTiles | None], Tensor]


class FittingCodec:
    """Encodes and decodes one picture at a time."""

    def __init__(
        self,
        codec: Codec,
        device: torch.device,
        *,
        tile: int | None = None,
        max_memory: int | None = None,
        fixed: bool = False,
    ) -> None:
        """
        Args:
            tile: side of a tile, pixels; None takes the largest that fits, and no tiles where the
                picture does.
            max_memory: what this process may hold on the device, bytes; None takes most of what is
                free.
            fixed: a tile that does not fit is an error.
        """
        self._codec, self._device = codec, device
        self._tile, self._max_memory, self._fixed = tile, max_memory, fixed
        self._foretold = cache(self._bytes)

    def encode(self, pixels: Tensor) -> Tensor:
        """As `Codec.encode`.

        Raises:
            FlowmapsrError: memory is too small for the smallest tile.
        """
        return self._run(self._codec.encode, pixels, self._codec.downsample)

    def decode(self, latents: Tensor, inside: Box | None = None) -> Tensor:
        """As `Codec.decode`; raises as `encode`."""

        def decoded(x: Tensor, tiles: CodecTiles | None) -> Tensor:
            return self._codec.decode(x, tiles, inside)

        return self._run(decoded, latents, 1, self._codec.decode)

    def _run(self, work: Pass, x: Tensor, side: int, like: Pass | None = None) -> Tensor:
        """
        Args:
            side: places of x along a latent.
            like: takes no less memory than the work, and is the same in every call.
        """
        tiles = self._tiles(like or work, x, side)
        while True:
            try:
                return work(x, tiles)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                tiles = self._smaller(tiles, max(x.shape[-2:]) // side, error)
            pixels = tiles.side * self._codec.downsample
            log.warning("memory was full: the codec goes on with tiles of %d pixels", pixels)

    def _tiles(self, work: Pass, x: Tensor, side: int) -> CodecTiles | None:
        """Those that fit; None where the whole picture does."""
        down = self._codec.downsample
        height, width = (length // side * down for length in x.shape[-2:])
        if self._tile is not None:
            fits = max(height, width) <= self._tile
            return None if fits else CodecTiles(max(1, self._tile // down))
        if height * width <= _SIDES[-1] ** 2:
            return None
        if self._max_memory is None:
            budget = _SHARE * free_bytes(self._device)
        else:
            budget = self._max_memory - used_bytes(self._device)
        if self._foretold(work, x.shape, x.dtype) <= budget:
            return None
        budget -= 4 * 3 * height * width  # the result, or what is made of it
        for tried in _SIDES:
            seen = (tried + 2 * _AROUND) // down * side
            needed = self._foretold(work, x.shape[:2] + (seen, seen), x.dtype)
            # Half, as more kept activations save more time than larger tiles.
            if needed <= budget / 2 or tried == _SIDES[-1]:
                break
        # What is kept next is made beside what was kept before.
        return CodecTiles(max(1, tried // down), keep=max(0, int(budget - needed) // 2))

    def _smaller(self, tiles: CodecTiles | None, latents: int, error: Exception) -> CodecTiles:
        down = self._codec.downsample
        smallest, largest = (max(1, pixels // down) for pixels in (_SIDES[-1], _SIDES[0]))
        side = latents if tiles is None else tiles.side
        if side <= smallest or self._fixed:
            raise FlowmapsrError(
                f"memory is too small for the codec's tiles of {side * down} pixels: close other "
                "programs, use a smaller scale, or a device with more of it"
            ) from error
        return CodecTiles(max(smallest, min(side, 2 * largest) // 2), keep=0)

    def _bytes(self, work: Pass, shape: torch.Size, dtype: torch.dtype) -> float:
        return foretold_bytes(lambda x: work(x, None), shape, dtype, self._device)

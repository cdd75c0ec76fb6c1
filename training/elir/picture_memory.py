"""Whether memory holds a picture that ELIR restores: its field sees all of it in one piece."""

from __future__ import annotations

import torch

from datagen.errors import FlowmapsrError
from training.elir.objective import RestoringNetworks
from training.monitoring.memory import MemoryModel, free_bytes, used_bytes

_SHARE = 0.7
"""Of the free memory that a picture may take."""
_ARRAYS = 4 * 3 * 4
"""Bytes of a pixel that are held beside a pass where the picture is whole: four times three
channels in float32."""
_MEASURED = 8, 16
"""Sides of the two pictures that are measured, in least sizes of the networks."""


class PictureMemory:
    """Refuses pictures that are too large, and says which size fits."""

    def __init__(
        self,
        networks: RestoringNetworks,
        *,
        size_multiple: int,
        downsample: int,
        largest_tile: int,
        max_memory: int | None,
        device: torch.device,
    ) -> None:
        """
        Args:
            largest_tile: side of what encoder, coarse estimator and decoder see at once, pixels.
            max_memory: what this process may hold on the device, bytes; None takes most of what is
                free.
        """
        self.networks = networks
        self.size_multiple, self.downsample = size_multiple, downsample
        self.largest_tile, self.max_memory = largest_tile, max_memory
        self.device = device
        self._lines: tuple[MemoryModel, MemoryModel] | None = None

    def require(self, shape: tuple[int, int], *, held: int | None = None) -> None:
        """
        Args:
            shape: (H, W) of the picture.
            held: bytes of it that are held already; None where its pixels are never whole.

        Raises:
            FlowmapsrError: such a picture does not fit.
        """
        height, width = shape
        small, large = (side * self.size_multiple for side in _MEASURED)
        if height * width <= large**2:  # what is measured is not worth measuring
            return
        if self._lines is None:
            self._lines = self._measured(small, large)
        if self.max_memory is None:
            budget = _SHARE * free_bytes(self.device)
        else:
            budget = float(self.max_memory - used_bytes(self.device))
        budget += held or 0
        arrays = 0 if held is None else _ARRAYS
        needed = self._bytes(height * width, arrays)
        if needed > budget:
            side = self._largest_side(budget, arrays)
            size = f"pictures of up to {side}x{side} pixels fit" if side else "no picture fits"
            raise FlowmapsrError(
                f"a result of {width}x{height} pixels takes {needed / 1e9:.1f} GB of memory, and "
                f"{max(0.0, budget) / 1e9:.1f} GB may be used: {size} (this model sees all latents "
                "of a picture at once); use a smaller scale, cut the picture, or allow more memory"
            )

    def _measured(self, *sides: int) -> tuple[MemoryModel, MemoryModel]:
        """Of the field, and of the parts that run in tiles; over the places of their inputs."""
        nets, down = self.networks, self.downsample
        crops = [torch.zeros(1, 3, side, side, device=self.device) for side in sides]
        times = torch.zeros(1, device=self.device)
        latents = [nets.encoder(crop) for crop in crops]
        assert latents[0].shape[-1] == sides[0] // down
        field = MemoryModel(lambda z: nets.field(z, times), *latents)
        tiles = MemoryModel(lambda y: nets.decoder(nets.coarse(nets.encoder(y))), *crops)
        return field, tiles

    def _bytes(self, pixels: int, arrays: int) -> float:
        """What a picture takes, with `arrays` bytes of each pixel that are held beside a pass."""
        assert self._lines is not None
        field, tiles = self._lines
        passes = (
            field.bytes(pixels // self.downsample**2),
            tiles.bytes(min(pixels, self.largest_tile**2)),
        )
        return max(passes) + arrays * pixels

    def _largest_side(self, budget: float, arrays: int) -> int:
        """Of a square picture that fits, a multiple of the networks' least size."""
        count, step = 0, 1 << 12
        while step:
            if self._bytes((self.size_multiple * (count + step)) ** 2, arrays) <= budget:
                count += step
            step //= 2
        return count * self.size_multiple

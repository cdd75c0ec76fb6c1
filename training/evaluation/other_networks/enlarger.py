"""A network of somebody else's that enlarges pictures by its own factor, as a method at any scale:
in tiles, and resized where the factor is another one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.evaluation.measure import Flaw, Made, NoResult
from training.evaluation.photos import DegradedPhoto

TILE, MARGIN = 256, 16
"""Largest side of a tile, and how much the network sees around it, LQ pixels."""


@dataclass(frozen=True)
class Enlarger:
    """A network, ready to run."""

    factor: int
    run: Callable[[np.ndarray], np.ndarray]
    """RGB float32 (h, w, 3) in [0, 1] to (factor h, factor w, 3), which may be a little outside."""
    tile: int | None = TILE
    """None for a network that must see the whole picture."""

    def restore(self, photo: DegradedPhoto) -> Made:
        """
        Raises:
            NoResult: the network fails.
        """
        try:
            picture = self.enlarged(photo.small)
        except Exception as error:  # another package's, which must not end an evaluation
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise NoResult(Flaw("failed for", f"{photo.name} ({text})")) from error
        if picture.shape[1::-1] == photo.size:
            return Made(picture)
        resized = Image.fromarray(picture).resize(photo.size, Image.Resampling.BICUBIC)
        flaw = Flaw(f"enlarges by {self.factor}, resized by bicubic interpolation:", photo.name)
        return Made(np.asarray(resized), flaw)

    def enlarged(self, small: np.ndarray) -> np.ndarray:
        """RGB uint8 (h, w, 3) to (factor h, factor w, 3)."""
        height, width = small.shape[:2]
        result = np.empty((height * self.factor, width * self.factor, 3), np.uint8)
        for rows, columns in itertools.product(self._parts(height), self._parts(width)):
            tile = small[rows.seen, columns.seen].astype(np.float32) / 255
            made = self.run(tile)
            sides = (tile.shape[0] * self.factor, tile.shape[1] * self.factor, 3)
            if made.shape != sides:
                raise ValueError(f"{made.shape} of {tile.shape}, not {sides}")
            kept = made[rows.kept, columns.kept]
            result[rows.place, columns.place] = (kept * 255).round().clip(0, 255)
        return result

    def _parts(self, length: int) -> Iterator[_Part]:
        """Of a side: as many tiles as are needed, of nearly equal lengths."""
        count = 1 if self.tile is None else math.ceil(length / self.tile)
        ends = [round(length * i / count) for i in range(count + 1)]
        for start, end in itertools.pairwise(ends):
            first, last = max(0, start - MARGIN), min(length, end + MARGIN)
            scaled = [self.factor * one for one in (start, end, first)]
            kept = slice(scaled[0] - scaled[2], scaled[1] - scaled[2])
            yield _Part(slice(first, last), kept, slice(scaled[0], scaled[1]))


@dataclass(frozen=True)
class _Part:
    """A tile, along one side."""

    seen: slice
    """Of the LQ."""
    kept: slice
    """Of the tile's result, without its margin."""
    place: slice
    """In the picture's result."""

"""Pictures that are never whole in memory: rows of them, made when they are asked for.

Knows no network and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from datagen.degradation.resample import resized
from datagen.degradation.resize_matrix import reflected, resize_matrix
from datagen.degradation.settings import Interpolation

Rows = Callable[[slice], np.ndarray]
"""Rows of a picture by their numbers, (rows, W, C)."""


def enlarged_rows(
    source: Rows, shape: tuple[int, int], size: tuple[int, int], mode: Interpolation
) -> Rows:
    """A picture of uint8 or uint16 enlarged, but for rounding as `resized` does it.

    Args:
        shape: (height, width) of the picture.
        size: (width, height) of the result.
    """
    if (shape[1], shape[0]) == size:
        return source
    matrix = resize_matrix(shape[0], size[1], mode)

    def rows(wanted: slice) -> np.ndarray:
        starts = matrix.starts[wanted]
        first = int(starts.min())
        there = source(slice(first, int(starts.max()) + matrix.taps))
        weights = matrix.weights[0, wanted].astype(np.float32)
        high = np.zeros((len(starts), *there.shape[1:]), np.float32)
        for tap in range(matrix.taps):
            high += weights[:, tap, None, None] * there[starts - first + tap]
        wide = resized(high, (size[0], len(high)), mode).reshape(len(high), size[0], -1)
        top = np.iinfo(there.dtype).max
        return np.clip(np.rint(wide, out=wide), 0, top, out=wide).astype(there.dtype)

    return rows


def padded_rows(
    source: Rows, shape: tuple[int, int], around: tuple[tuple[int, int], tuple[int, int]]
) -> Rows:
    """A picture with pixels around it, as `numpy.pad` makes them: those inside mirrored, or the
    outermost ones repeated where none are asked for before the first row.

    Args:
        shape: (height, width) of the picture.
        around: pixels before and after its rows, and before and after its columns.
    """
    mirrored = around[0][0] > 0

    def rows(wanted: slice) -> np.ndarray:
        numbers = np.arange(wanted.start, wanted.stop) - around[0][0]
        inside = reflected(numbers, shape[0]) if mirrored else numbers.clip(0, shape[0] - 1)
        first = int(inside.min())
        there = source(slice(first, int(inside.max()) + 1))[inside - first]
        mode = "reflect" if mirrored else "edge"
        return np.pad(there, [(0, 0), around[1], (0, 0)], mode=mode)  # type: ignore[call-overload]

    return rows


def with_rows_around(
    parts: Iterable[np.ndarray], height: int, reach: int
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows of a picture with those around them, from parts (rows, W, C) of it from top to bottom.

    Yields which rows are given, those and up to `reach` before and after them, and what these show.
    """
    begin = done = 0  # of what is held, and of what was given
    held: np.ndarray | None = None
    for part in parts:
        held = part if held is None else np.concatenate([held, part])
        end = begin + len(held)
        until = height if end == height else end - reach
        if until <= done:
            continue
        yield slice(done, until), slice(begin, end), held
        done = until
        keep = max(begin, done - reach)
        held, begin = held[keep - begin :], keep

"""Rows of pictures that are never whole in memory: what the whole has there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datagen.degradation.resample import resized
from training.inference.pictures.rows import enlarged_rows, padded_rows, with_rows_around


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest", "bicubic_antialiased", "area"])
@pytest.mark.parametrize("size", [(101, 75), (50, 31), (20, 9)])
def test_rows_are_enlarged_as_the_whole(mode: Any, size: tuple[int, int]) -> None:
    image = picture(9, 20)
    rows = enlarged_rows(lambda wanted: image[wanted], (9, 20), size, mode)
    parts = [rows(slice(top, min(size[1], top + 7))) for top in range(0, size[1], 7)]
    whole = resized(image.astype(np.float32), size, mode).round().clip(0, 255)
    assert np.abs(np.concatenate(parts) - whole).max() <= 1


@pytest.mark.parametrize(("margin", "mode"), [(8, "reflect"), (0, "edge")])
@pytest.mark.parametrize("height", [1, 5, 40])
def test_rows_are_padded_as_by_numpy(margin: int, mode: Any, height: int) -> None:
    image, around = picture(height, 30), ((margin, margin + 3), (margin, margin + 2))
    whole = np.pad(image, [*around, (0, 0)], mode=mode)
    rows = padded_rows(lambda wanted: image[wanted], (height, 30), around)
    parts = [rows(slice(top, min(len(whole), top + 4))) for top in range(0, len(whole), 4)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("reach", [0, 3, 30])
def test_rows_come_with_those_around_them(reach: int) -> None:
    image, done = picture(50, 4), 0
    parts = (image[top : min(50, top + 8)] for top in range(0, 50, 8))
    for rows, around, held in with_rows_around(parts, 50, reach):
        assert np.array_equal(held, image[around]) and rows.start == done
        assert around.start <= max(0, rows.start - reach)
        assert around.stop >= min(50, rows.stop + reach)
        done = rows.stop
    assert done == 50

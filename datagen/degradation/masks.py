"""What inpainting has to fill: lost pixels and a lost square.

Says only where; `draw.py` draws how much and with which seed.
"""

from __future__ import annotations

import numpy as np


def kept_pixels(size: tuple[int, int], *, lost: float, seed: int) -> np.ndarray:
    """1 where a pixel stays and 0 where it is lost, float32 (H, W, 1); exactly int(lost * H * W)
    pixels are lost."""
    kept = np.ones(size, np.float32)
    kept.reshape(-1)[: int(lost * kept.size)] = 0
    np.random.Generator(np.random.SFC64(seed)).shuffle(kept.reshape(-1))
    return kept[..., None]


def without_box(pixels: np.ndarray, *, side: float, x: float, y: float) -> np.ndarray:
    """float32 (H, W, 3) with a black square.

    `side` is a part of the shorter side, `x` and `y` of the room that is left beside the square.
    """
    height, width = pixels.shape[:2]
    length = max(1, round(side * min(height, width)))
    left, top = round(x * (width - length)), round(y * (height - length))
    boxed = pixels.copy()
    boxed[top : top + length, left : left + length] = 0
    return boxed

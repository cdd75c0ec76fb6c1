"""Values over pairs of times (t, s): collected in cells, and drawn as a picture."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

INTERVALS = 16
"""Cells are centered on the points of the dyadic grid with this many intervals."""
CELL = 20
"""Pixels."""
MARGIN = 44


def time_map(t: Tensor, s: Tensor, values: Tensor) -> Tensor:
    """Sums and counts of values (B,) in the cells nearest to (t, s): (2, 17, 17) float64, [t, s].

    Adding maps over batches and workers gives exact means, sums / counts.
    """
    cells = INTERVALS + 1
    index = ((t * INTERVALS).round() * cells + (s * INTERVALS).round()).long()
    both = torch.stack([values.detach().double(), torch.ones_like(values, dtype=torch.float64)])
    return _empty(t.device).flatten(1).index_add_(1, index, both).view(2, cells, cells)


def _empty(device: torch.device) -> Tensor:
    return torch.zeros(2, INTERVALS + 1, INTERVALS + 1, dtype=torch.float64, device=device)


class MeanTimeMap:
    """The mean of each cell since it was last taken, over all workers."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, t: Tensor, s: Tensor, values: Tensor) -> None:
        """Adds this worker's values (B,) at the times (B,)."""
        new = time_map(t, s, values)
        self._sums = new if self._sums is None else self._sums + new

    def take(self, device: torch.device) -> np.ndarray:
        """Means [t, s], NaN where there was no value; starts again from nothing.

        Every worker must call it.
        """
        sums = _empty(device) if self._sums is None else self._sums
        dist.all_reduce(sums)
        self._sums = None
        total, count = sums.cpu().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            means: np.ndarray = total / count
        return means


def grid_times() -> tuple[Tensor, Tensor]:
    """t and s (289,) at the centers of the cells, in the order of a flattened map."""
    points = torch.linspace(0, 1, INTERVALS + 1)
    t, s = torch.meshgrid(points, points, indexing="ij")
    return t.flatten(), s.flatten()


def draw_time_map(values: np.ndarray, title: str) -> Image.Image:
    """Values [t, s] of the cells as colors, dark blue least; NaN and s > t stay gray.

    t grows to the right and s upwards; above are the title and the least and greatest value.
    """
    size = CELL * len(values)
    shown = np.isfinite(values) & np.tril(np.ones_like(values, dtype=bool))
    low, high = (float(f(values[shown])) if shown.any() else 0.0 for f in (np.min, np.max))
    scaled = np.where(shown, values - low, 0) / max(high - low, 1e-12)
    colors = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    colors[~shown] = 200
    # [t, s] to rows of s from the top down and columns of t.
    picture = np.ascontiguousarray(colors.transpose(1, 0, 2)[::-1].repeat(CELL, 0).repeat(CELL, 1))
    canvas = np.full((size + 2 * MARGIN, size + 2 * MARGIN, 3), 255, np.uint8)
    canvas[MARGIN:-MARGIN, MARGIN:-MARGIN] = picture
    _write(canvas, f"{title}: {low:.3g} to {high:.3g}", (MARGIN, 28))
    for text, x in (("t = 0", MARGIN), ("t = 1", MARGIN + size - 40)):
        _write(canvas, text, (x, size + MARGIN + 20))
    for text, y in (("s=1", MARGIN + 12), ("s=0", MARGIN + size)):
        _write(canvas, text, (6, y))
    return Image.fromarray(canvas[..., ::-1])


def _write(canvas: np.ndarray, text: str, position: tuple[int, int]) -> None:
    cv2.putText(canvas, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)

"""Enlarges pictures whose results do not fit into memory: they come in bands of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from datagen.degradation.settings import Interpolation
from datagen.errors import FlowmapsrError
from training.inference.bands import BandRestorer
from training.inference.color import color_reach, fix_colors
from training.inference.how import Decided
from training.inference.pictures.decode import Picture
from training.inference.pictures.pixels import colors_everywhere, enlarged_size, to_levels
from training.inference.pictures.rows import Rows, enlarged_rows, padded_rows, with_rows_around
from training.inference.restored import shares_of
from training.inference.tiles.tiler import Tiler
from training.inference.watch import Watch
from training.restorer_protocol import Restorer
from training.settings.evaluation import ColorFix


@dataclass(frozen=True)
class BandUpscaler:
    """Enlarges pictures by one model."""

    restorer: Restorer
    tiler: Tiler
    resize: Interpolation
    """How the LQ came to its size in training."""
    usual_color_fix: ColorFix

    def __call__(
        self, picture: Picture, scale: float, how: Decided, watch: Watch
    ) -> Iterator[Picture]:
        """As `Enlarger.upscale_bands`."""
        enlarged = _Enlarged(picture, scale, self.resize)
        gray = picture.gray and self.usual_color_fix != "off"
        restored = self._restored(enlarged, how.steps, watch)
        reach, levels = color_reach(how.color_fix, scale), picture.rgb.dtype
        for rows, around, held in with_rows_around(restored, enlarged.shape[0], reach):
            lq = np.divide(enlarged.lq(around), np.iinfo(levels).max, dtype=np.float32)
            fixed = fix_colors(held, lq, how.color_fix, scale=scale, strength=how.color_strength)
            inside = fixed[rows.start - around.start : rows.stop - around.start]
            rgb = to_levels(inside, levels)
            if gray:
                rgb = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            alpha = None if enlarged.alpha is None else enlarged.alpha(rows)[..., 0]
            yield replace(picture, rgb=rgb, alpha=alpha, gray=gray)

    def _restored(self, enlarged: _Enlarged, steps: int, watch: Watch) -> Iterator[np.ndarray]:
        """The network's estimate in [0, 1], float32 (rows, W, 3) at a time."""
        height, width = enlarged.shape
        parts = self.restorer.parts()
        if parts is None:
            raise FlowmapsrError(
                f"{width}x{height} pixels are too many for this kind of model, which needs the "
                "whole picture in memory: use a smaller scale or cut the picture"
            )
        margin, multiple = self.restorer.margin, self.restorer.size_multiple
        rows, columns = (
            (margin, margin + -(length + 2 * margin) % multiple) for length in (height, width)
        )
        padded = padded_rows(enlarged.lq, (height, width), (rows, columns))
        shape = height + sum(rows), width + sum(columns)
        work = BandRestorer(parts, self.restorer.device, self.tiler)
        top = -margin
        for part in work(padded, shape, steps, watch):
            first, last = max(top, 0), min(top + part.shape[1], height)
            if first < last:
                yield shares_of(part[:, first - top : last - top, margin : margin + width])
            top += part.shape[1]
            watch.part(min(max(top, 0), height) / height)


class _Enlarged:
    """The rows of a picture at the size of its result."""

    def __init__(self, picture: Picture, scale: float, mode: Interpolation) -> None:
        size = enlarged_size(picture.rgb, scale)
        self.shape = size[1], size[0]
        height, width = picture.rgb.shape[:2]
        colors, alpha = picture.rgb, picture.alpha
        self.alpha: Rows | None = None
        if alpha is not None:
            colors = colors_everywhere(colors, alpha)
            deep = alpha[..., None]
            self.alpha = enlarged_rows(lambda r: deep[r], (height, width), size, "bicubic")
        self.lq = enlarged_rows(lambda r: colors[r], (height, width), size, mode)

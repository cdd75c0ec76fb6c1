"""One picture's pixels to those of a larger one: resized to the target size as in training,
restored by the model, and given back their colors. Knows no file and no model folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Unpack

import cv2
import numpy as np
import psutil
import torch

from datagen.degradation.resample import resized
from datagen.errors import FlowmapsrError
from datagen.tiles.boxes import Box
from training.inference.color import fix_colors
from training.inference.how import Decided, How
from training.inference.pictures.decode import Picture
from training.inference.pictures.pixels import (
    bicubic,
    colors_everywhere,
    enlarged_size,
    to_levels,
    top_level,
)
from training.inference.restored import shares_of
from training.inference.streaming import BandUpscaler
from training.inference.tiles.tiler import Tiler
from training.inference.trained import trained_resize, usual_color_fix
from training.inference.watch import Watch
from training.monitoring.memory import is_out_of_memory
from training.restorer_protocol import Restorer
from training.settings.evaluation import ColorFix

_BYTES_PER_PIXEL = 60
"""Of a result: what is held of it at once beside the work of the network (measured: 52 to 57)."""

LARGEST_WHOLE = 100_000_000
"""Pixels of the largest result that is held whole."""


class Enlarger:
    """A trained model on one picture after the other: whole where memory holds it, else in bands of
    rows."""

    def __init__(self, restorer: Restorer, tiler: Tiler | None = None) -> None:
        self.restorer, self.tiler = restorer, tiler or Tiler()
        self.config = restorer.config
        self._resize = trained_resize(self.config.degradation)
        self.usual_color_fix = usual_color_fix(self.config.degradation)

    def enlarge(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """RGB uint8 or uint16 (h, w, 3) at (width, height), resized as the model's LQ was in
        training."""
        if self._resize == "bicubic":
            return bicubic(image, size)
        result = resized(image.astype(np.float32), size, self._resize)
        return result.round().clip(0, top_level(image)).astype(image.dtype)

    def restore(
        self,
        image: np.ndarray,
        *,
        steps: int | None = None,
        color_fix: ColorFix = "off",
        scale: float = 1,
    ) -> np.ndarray:
        """An LQ image already at its target size, RGB uint8 or uint16 (H, W, 3) -> its HQ estimate.

        Args:
            color_fix: `off` leaves the colors of the network.
            scale: by which the LQ was enlarged, for the color fix.
        """
        how = Decided(steps or self.restorer.usual_steps, color_fix, color_strength=1)
        return self._finished(image, scale, how, Watch())

    def upscale_picture(
        self, picture: Picture, *, scale: float, watch: Watch | None = None, **how: Unpack[How]
    ) -> Picture:
        """The picture enlarged; gray stays gray but where the model makes colors, and transparency
        is enlarged by bicubic interpolation. `watch` is told of the network's work.

        Raises:
            FlowmapsrError: it is too large for this machine's memory.
        """
        size = enlarged_size(picture.rgb, scale)
        colors, alpha = picture.rgb, picture.alpha
        try:
            if not self._fits(size):
                raise MemoryError
            if alpha is not None:
                colors = colors_everywhere(colors, alpha)
                alpha = bicubic(alpha, size)
            rgb = self._upscaled(colors, scale, self._decided(how), watch or Watch())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = colors.shape[:2]
            raise FlowmapsrError(
                f"{width}x{height} at scale {scale:g} does not fit into memory; use a smaller "
                "scale or cut the picture"
            ) from error
        gray = picture.gray and self.usual_color_fix != "off"
        if gray:
            rgb = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return replace(picture, rgb=rgb, alpha=alpha, gray=gray)

    def is_streamed(self, size: tuple[int, int]) -> bool:
        """Whether a result of (width, height) is made by `upscale_bands`, if its format can be
        written so."""
        if self.restorer.parts() is None:
            return False
        if self.tiler.fixed:  # bands round differently
            return size[0] * size[1] > LARGEST_WHOLE
        return size[0] * size[1] > LARGEST_WHOLE or not self._fits(size)

    def upscale_bands(
        self, picture: Picture, *, scale: float, watch: Watch | None = None, **how: Unpack[How]
    ) -> Iterator[Picture]:
        """As `upscale_picture`, in bands of rows from top to bottom, of which memory needs to hold
        one and no more.

        Raises:
            FlowmapsrError: the model cannot restore in parts, or memory is too small even so.
        """
        bands = BandUpscaler(self.restorer, self.tiler, self._resize, self.usual_color_fix)
        return bands(picture, scale, self._decided(how), watch or Watch())

    def _decided(self, how: How) -> Decided:
        usual = self.restorer.usual_steps
        return Decided.of(how, usual_steps=usual, usual_color_fix=self.usual_color_fix)

    def _fits(self, size: tuple[int, int]) -> bool:
        """Whether memory holds such a result beside the work of the network."""
        return size[0] * size[1] * _BYTES_PER_PIXEL <= psutil.virtual_memory().available

    def _upscaled(self, image: np.ndarray, scale: float, how: Decided, watch: Watch) -> np.ndarray:
        """RGB uint8 or uint16 (h, w, 3) -> (round(h * scale), round(w * scale), 3)."""
        lq = self.enlarge(image, enlarged_size(image, scale))
        return self._finished(lq, scale, how, watch)

    def _finished(self, lq: np.ndarray, scale: float, how: Decided, watch: Watch) -> np.ndarray:
        """RGB uint8 or uint16 (H, W, 3), enlarged by `scale` -> restored, in its colors."""
        if how.color_fix == "off":
            return to_levels(self._restored(lq, how.steps, watch), lq.dtype)
        fixed = fix_colors(  # holds the one copy of either picture
            self._restored(lq, how.steps, watch),
            np.divide(lq, top_level(lq), dtype=np.float32),
            how.color_fix,
            scale=scale,
            strength=how.color_strength,
        )
        return to_levels(fixed, lq.dtype)

    @torch.inference_mode()
    def _restored(self, image: np.ndarray, steps: int, watch: Watch) -> np.ndarray:
        """RGB uint8 or uint16 (H, W, 3) -> float32 in [0, 1]."""
        height, width = image.shape[:2]
        margin, multiple = self.restorer.margin, self.restorer.size_multiple
        around = [
            (margin, margin + -(length + 2 * margin) % multiple) for length in (height, width)
        ]
        padded = np.pad(image, [*around, (0, 0)], mode="reflect" if margin else "edge")
        tensor = torch.from_numpy(padded).to(self.restorer.device)
        pixels = tensor.permute(2, 0, 1)[None].float().div_(top_level(image) / 2).sub_(1)
        watch.begin(steps)
        restored = self.restorer(
            pixels,
            steps=steps,
            in_tiles=partial(self.tiler, on_part=watch.part),
            on_step=watch.step,
            inside=Box(margin, margin + height, margin, margin + width),
        )
        return shares_of(restored[0])

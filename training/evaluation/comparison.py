"""One picture that shows what a model does to held-out photos: LQ | bicubic | ours at 1, 2, 4 steps
| original.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.evaluation.metrics.fidelity import quality
from training.evaluation.photos import DegradedPhoto
from training.evaluation.variants import restored
from training.inference.pictures.pixels import bicubic
from training.inference.upscaler import Upscaler
from training.settings.evaluation import ColorFix
from training.tracking.pictures import Panel, panel_grid

CROP, ZOOM = 192, 2
"""Side of the shown part of each photo, pixels, and by how much it is enlarged."""


def comparison(
    upscaler: Upscaler,
    photos: Sequence[DegradedPhoto],
    steps: Sequence[int],
    *,
    color_fix: ColorFix = "off",
) -> Image.Image:
    """A row for each photo; below every panel its name and its PSNR over the whole photo, if there
    is an original."""
    rows = [_panels(upscaler, photo, steps, color_fix) for photo in photos]
    panels = [panel for row in rows for panel in row]
    return panel_grid(panels, columns=len(rows[0]), crop=CROP, zoom=ZOOM)


def _panels(
    upscaler: Upscaler, photo: DegradedPhoto, steps: Sequence[int], color_fix: ColorFix
) -> list[Panel]:
    width, height = photo.size
    enlarged = bicubic(photo.small, (width, height))
    # Nearest repeats the LQ pixels as they are.
    repeated = Image.fromarray(photo.small).resize((width, height), Image.Resampling.NEAREST)
    panels = [
        Panel("LQ", np.asarray(repeated), f"{photo.small.shape[1]}x{photo.small.shape[0]}"),
        Panel("bicubic", enlarged, _psnr(photo, enlarged)),
    ]
    for count in steps:
        made = restored(upscaler, photo, steps=count, color_fix=color_fix)
        label = f"{upscaler.method}, {count} step{'s' if count > 1 else ''}"
        panels.append(Panel(label, made, _psnr(photo, made)))
    if photo.original is not None:
        panels.append(Panel("original", photo.original, f"{width}x{height}"))
    return panels


def _psnr(photo: DegradedPhoto, image: np.ndarray) -> str:
    if photo.original is None:
        return ""
    return f"{quality(photo.original, image).psnr:.2f} dB"

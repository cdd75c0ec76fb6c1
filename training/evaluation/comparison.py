"""One picture that shows what a model does to held-out photos: LQ | bicubic | ours at 1, 2, 4 steps
| original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.metrics import peak_signal_noise_ratio

from training.evaluation.evaluate import DegradedPhoto
from training.inference.upscaler import Upscaler, bicubic

CROP = 192
"""Side of the shown part of each photo, pixels."""
ZOOM = 2
MARGIN = 8
LABEL = 44
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)


@dataclass(frozen=True)
class Panel:
    label: str
    image: np.ndarray
    """RGB uint8 (H, W, 3) at the size of the original."""
    note: str


def comparison(
    upscaler: Upscaler, photos: Sequence[DegradedPhoto], steps: Sequence[int]
) -> Image.Image:
    """A row for each photo; below every panel its name and its PSNR over the whole photo."""
    rows = [_row(_panels(upscaler, photo, steps)) for photo in photos]
    return Image.fromarray(np.concatenate(rows))


def _panels(upscaler: Upscaler, photo: DegradedPhoto, steps: Sequence[int]) -> list[Panel]:
    height, width = photo.original.shape[:2]
    enlarged = bicubic(photo.small, (width, height))
    # Nearest repeats the LQ pixels as they are.
    repeated = Image.fromarray(photo.small).resize((width, height), Image.Resampling.NEAREST)
    panels = [
        Panel("LQ", np.asarray(repeated), f"{photo.small.shape[1]}x{photo.small.shape[0]}"),
        Panel("bicubic", enlarged, _psnr(photo, enlarged)),
    ]
    for count in steps:
        restored = upscaler.restore(upscaler.enlarge(photo.small, (width, height)), steps=count)
        label = f"{upscaler.method}, {count} step{'s' if count > 1 else ''}"
        panels.append(Panel(label, restored, _psnr(photo, restored)))
    panels.append(Panel("original", photo.original, f"{width}x{height}"))
    return panels


def _psnr(photo: DegradedPhoto, image: np.ndarray) -> str:
    return f"{peak_signal_noise_ratio(photo.original, image, data_range=255):.2f} dB"


def _row(panels: Sequence[Panel]) -> np.ndarray:
    side = CROP * ZOOM
    width = MARGIN + len(panels) * (side + MARGIN)
    row = Image.new("RGB", (width, MARGIN + side + LABEL), BACKGROUND)
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(16)
    for index, panel in enumerate(panels):
        left = MARGIN + index * (side + MARGIN)
        row.paste(_crop(panel.image).resize((side, side), Image.Resampling.NEAREST), (left, MARGIN))
        text = f"{panel.label}   {panel.note}"
        draw.text((left, MARGIN + side + 8), text, fill=INK, font=font)
    return np.asarray(row)


def _crop(image: np.ndarray) -> Image.Image:
    """The middle of the picture."""
    height, width = image.shape[:2]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    return Image.fromarray(image[top : top + CROP, left : left + CROP])

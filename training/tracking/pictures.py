"""Pictures of restored samples: panels side by side, each with its name and a note."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PHOTO = "pictures/photo_{}"
"""Names of the pictures of restored samples in MLflow, numbered from 1."""
MARGIN = 8
LABEL = 30
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)


@dataclass(frozen=True)
class Panel:
    """An image and what is written below it."""

    label: str
    image: np.ndarray
    """RGB uint8 (H, W, 3)."""
    note: str


def panel_grid(panels: Sequence[Panel], *, columns: int, crop: int, zoom: int) -> Image.Image:
    """The panels in rows of `columns`: of each image the middle, of at most `crop` pixels
    and no larger than the smallest image, enlarged."""
    height, width = (min(crop, *(panel.image.shape[axis] for panel in panels)) for axis in (0, 1))
    shown = (width, height)
    size = (zoom * shown[0], zoom * shown[1])
    cell = (size[0] + MARGIN, MARGIN + size[1] + LABEL)
    rows = math.ceil(len(panels) / columns)
    grid = Image.new("RGB", (MARGIN + columns * cell[0], rows * cell[1]), BACKGROUND)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(15)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * cell[0], MARGIN + row * cell[1]
        grid.paste(_middle(panel.image, *shown).resize(size, Image.Resampling.NEAREST), (left, top))
        text = f"{panel.label}   {panel.note}"
        draw.text((left, top + size[1] + 6), text, fill=INK, font=font)
    return grid


def _middle(image: np.ndarray, width: int, height: int) -> Image.Image:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return Image.fromarray(image[top : top + height, left : left + width])


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] (B, 3, H, W) -> uint8, clamped and rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

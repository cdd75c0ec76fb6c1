"""Pictures of restored samples: panels side by side, each with its name and a note."""

from __future__ import annotations

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
    """RGB uint8 (H, W, 3); all panels of a row have one size."""
    note: str


def panel_row(panels: Sequence[Panel], *, crop: int, zoom: int) -> Image.Image:
    """The panels side by side: of each image at most `crop` pixels in the middle, enlarged."""
    height, width = panels[0].image.shape[:2]
    shown = (min(width, crop), min(height, crop))
    size = (zoom * shown[0], zoom * shown[1])
    total = MARGIN + len(panels) * (size[0] + MARGIN)
    row = Image.new("RGB", (total, MARGIN + size[1] + LABEL), BACKGROUND)
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(15)
    for index, panel in enumerate(panels):
        left = MARGIN + index * (size[0] + MARGIN)
        middle = _middle(panel.image, *shown).resize(size, Image.Resampling.NEAREST)
        row.paste(middle, (left, MARGIN))
        text = f"{panel.label}   {panel.note}"
        draw.text((left, MARGIN + size[1] + 6), text, fill=INK, font=font)
    return row


def _middle(image: np.ndarray, width: int, height: int) -> Image.Image:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return Image.fromarray(image[top : top + height, left : left + width])


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] (B, 3, H, W) -> uint8, clamped and rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

"""Turns a few samples into one picture: HQ | LQ | negative, with what was drawn written under each.

Knows pixels and draws, not where they come from.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datagen.drawn import (
    DrawnBlur,
    DrawnDegradation,
    DrawnDownscale,
    DrawnGaussianNoise,
    DrawnJpeg,
    DrawnMask,
    DrawnPoissonNoise,
    DrawnResize,
    DrawnResizeBack,
    DrawnSinc,
)
from datagen.samples import DrawnSample

_TILE = 360
_GAP = 14
_CAPTION = 62
_HEADER = 44
_PAPER = (250, 249, 246)
_INK = (38, 38, 42)
_FAINT = (112, 112, 120)


@dataclass(frozen=True)
class PreviewRow:
    """One sample: its draws and its images as decoded from the stored latents, uint8 (H, W, 3)."""

    drawn: DrawnSample
    hq: np.ndarray
    lq: np.ndarray
    neg: np.ndarray


def draw_preview(rows: Sequence[PreviewRow]) -> bytes:
    """A PNG with one row for each sample; equal rows give equal bytes."""
    heights = [_tile_size(row.hq)[1] for row in rows]
    width = 3 * _TILE + 4 * _GAP
    height = _HEADER + sum(heights) + len(rows) * (_CAPTION + _GAP)
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(("HQ", "LQ", "Negative")):
        draw.text((_left(column), 12), title, font=ImageFont.load_default(20), fill=_INK)
    top = _HEADER
    for row, tile_height in zip(rows, heights, strict=True):
        captions = (
            (
                row.drawn.key,
                f"{row.drawn.bucket}, crop {row.drawn.crop.width}x{row.drawn.crop.height}",
            ),
            _captions(row.drawn.lq),
            _captions(row.drawn.neg),
        )
        for column, image in enumerate((row.hq, row.lq, row.neg)):
            tile = Image.fromarray(image).resize(_tile_size(image), Image.Resampling.LANCZOS)
            page.paste(tile, (_left(column), top))
            first, second = captions[column]
            below = top + tile_height + 5
            draw.text((_left(column), below), first, font=ImageFont.load_default(15), fill=_INK)
            draw.text(
                (_left(column), below + 19), second, font=ImageFont.load_default(12), fill=_FAINT
            )
        top += tile_height + _CAPTION + _GAP
    encoded = io.BytesIO()
    page.save(encoded, format="PNG")
    return encoded.getvalue()


def _left(column: int) -> int:
    return _GAP + column * (_TILE + _GAP)


def _tile_size(image: np.ndarray) -> tuple[int, int]:
    """Fits the tile: as wide as the column, or as high as that for tall images."""
    height, width = image.shape[:2]
    factor = _TILE / max(height, width)
    return round(width * factor), round(height * factor)


def _captions(drawn: DrawnDegradation) -> tuple[str, str]:
    parts = [part for operation in drawn.operations if (part := _describe(operation))]
    return f"x{drawn.scale:.1f}", "\n".join(textwrap.wrap(", ".join(parts), width=54))


def _describe(operation: object) -> str:
    match operation:
        case DrawnBlur():
            return f"{operation.shape.replace('_', ' ')} {operation.sigma_x:.1f}"
        case DrawnSinc():
            return f"sinc {operation.omega:.1f}"
        case DrawnResize():
            return f"resize {operation.mode} {operation.factor:.2f}"
        case DrawnMask():
            return f"mask {operation.fraction:.0%}"
        case DrawnDownscale():
            return f"down {operation.mode}"
        case DrawnGaussianNoise():
            return f"{'gray ' if operation.gray else ''}gauss {operation.sigma:.0f}"
        case DrawnPoissonNoise():
            return f"{'gray ' if operation.gray else ''}poisson {operation.scale:.1f}"
        case DrawnJpeg():
            return f"jpeg {operation.quality}"
        case DrawnResizeBack():
            return f"up {operation.mode}"
    return ""

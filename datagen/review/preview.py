"""Turns a few samples into one picture: HQ | LQ | negative, with what was drawn written under each.

Knows pixels and draws, not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from datagen.dataset.records import DrawnSample
from datagen.degradation.parameters import (
    BlurParams,
    DegradationParams,
    DownscaleParams,
    GaussianNoiseParams,
    JpegParams,
    MaskParams,
    PoissonNoiseParams,
    ResizeBackParams,
    ResizeParams,
    SincParams,
)
from datagen.review.drawing import FAINT, INK, LINE, PANEL, PAPER, letters, png_bytes
from datagen.samples.decoding import DecodedSample

_TILE = 384
_GAP = 16
_TOP = 64
_LINE_HEIGHT = 18


@dataclass(frozen=True)
class PreviewRow:
    """One sample: its draws, and its pictures as decoded from the stored latents."""

    drawn: DrawnSample
    images: DecodedSample


@dataclass(frozen=True)
class _Caption:
    title: str
    lines: list[str]


def draw_preview(rows: Sequence[PreviewRow]) -> bytes:
    """A PNG with one row for each sample; equal rows give equal bytes."""
    captions = [_captions(row.drawn) for row in rows]
    heights = [_row_height(*pair) for pair in zip(rows, captions, strict=True)]
    width = 3 * _TILE + 6 * _GAP
    page = Image.new("RGB", (width, _TOP + sum(heights) + _GAP * len(rows)), PAPER)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(("HQ", "LQ", "Negative")):
        draw.text((_left(column) + _TILE / 2, 20), title, font=letters(24), fill=INK, anchor="ma")
    top = _TOP
    for row, texts, height in zip(rows, captions, heights, strict=True):
        box = (_GAP, top, width - _GAP, top + height)
        draw.rounded_rectangle(box, radius=8, fill=PANEL, outline=LINE)
        for column, image in enumerate((row.images.hq, row.images.lq, row.images.neg)):
            tile = Image.fromarray(image)
            tile = tile.resize(_tile_size(tile), Image.Resampling.LANCZOS)
            page.paste(tile, (_left(column) + (_TILE - tile.width) // 2, top + _GAP))
            corner = _left(column), top + _GAP + tile.height + 10
            _write(draw, corner, texts[column])
        top += height + _GAP
    return png_bytes(page)


def choose(drawn: Iterable[DrawnSample], count: int) -> list[str]:
    """Keys of at most `count` of the samples: those of photos not chosen yet come first."""
    photos: dict[str, list[str]] = {}
    for sample in drawn:
        photos.setdefault(sample.key.rpartition("-")[0], []).append(sample.key)
    ranked = [(rank, key) for keys in photos.values() for rank, key in enumerate(keys)]
    return [key for _, key in sorted(ranked, key=lambda item: item[0])][:count]


def _left(column: int) -> int:
    return 2 * _GAP + column * (_TILE + _GAP)


def _row_height(row: PreviewRow, captions: Sequence[_Caption]) -> int:
    lines = max(len(caption.lines) for caption in captions)
    picture = _tile_size(Image.fromarray(row.images.hq))[1]
    return 2 * _GAP + picture + 34 + lines * _LINE_HEIGHT


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Fits the tile: as wide as the column, or as high as that for tall images."""
    factor = _TILE / max(image.size)
    return round(image.width * factor), round(image.height * factor)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], caption: _Caption) -> None:
    left, top = corner
    draw.text((left, top), caption.title, font=letters(17), fill=INK)
    for index, line in enumerate(caption.lines):
        at = left, top + 26 + index * _LINE_HEIGHT
        draw.text(at, line, font=letters(14), fill=FAINT)


def _captions(drawn: DrawnSample) -> tuple[_Caption, _Caption, _Caption]:
    crop = f"crop {drawn.crop.width}x{drawn.crop.height} at {drawn.crop.left}, {drawn.crop.top}"
    turns = (
        f"turned by {90 * drawn.orientation.quarter_turns}"
        if drawn.orientation.quarter_turns
        else ""
    )
    flip = "mirrored" if drawn.orientation.flip else ""
    facts = [part for part in (drawn.bucket, crop, turns, flip) if part]
    name = drawn.source.rsplit("/", 1)[-1]
    hq = _Caption(_wrapped([name])[0], [*_wrapped([drawn.key]), *_wrapped(facts)])
    return hq, _degradation(drawn.lq), _degradation(drawn.neg)


def _degradation(drawn: DegradationParams) -> _Caption:
    parts = [part for operation in drawn.operations if (part := _describe(operation))]
    return _Caption(f"scale {drawn.scale:.1f}", _wrapped(parts))


def _wrapped(parts: Sequence[str]) -> list[str]:
    """Joins the parts with commas, in lines that fit under a tile."""
    lines: list[str] = []
    for index, part in enumerate(parts):
        part += "," if index < len(parts) - 1 else ""
        if lines and letters(14).getlength(f"{lines[-1]} {part}") <= _TILE:
            lines[-1] += f" {part}"
        else:
            lines.append(part if len(part) <= 48 else f"{part[:45]}...")
    return lines


def _describe(operation: object) -> str:
    match operation:
        case BlurParams():
            return f"blur {operation.shape.replace('_', ' ')} {_sigmas(operation)}"
        case SincParams():
            return f"sinc {operation.omega:.1f}"
        case ResizeParams():
            return f"resize {operation.mode} {operation.factor:.2f}"
        case MaskParams():
            return f"mask {operation.fraction:.0%}"
        case DownscaleParams():
            return f"down {operation.mode}"
        case GaussianNoiseParams():
            return f"{'gray ' if operation.gray else ''}noise {operation.sigma:.1f}"
        case PoissonNoiseParams():
            return f"{'gray ' if operation.gray else ''}poisson {operation.scale:.2f}"
        case JpegParams():
            return f"jpeg {operation.quality}"
        case ResizeBackParams():
            return f"up {operation.mode}"
    return ""


def _sigmas(blur: BlurParams) -> str:
    both = f"{blur.sigma_x:.1f}", f"{blur.sigma_y:.1f}"
    return both[0] if both[0] == both[1] else " x ".join(both)

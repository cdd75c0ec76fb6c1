"""Turns a dataset's statistics into one picture: scales, photos, buckets, noise, JPEG, latents.

Knows counts, not where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from datagen.dataset import statistics as bins
from datagen.dataset.statistics import Counts, LatentStatistics, Statistics
from datagen.review.drawing import BLUE, FAINT, INK, LINE, ORANGE, PANEL, PAPER, letters, png_bytes

_WIDTH, _HEIGHT = 600, 250
"""Of a panel, pixels."""
_GAP = 18
_TOP = 70
_LEFT, _RIGHT, _HEAD, _FOOT = 16, 16, 46, 38
_MOST_BUCKETS = 24


@dataclass(frozen=True)
class _Bars:
    """A panel of bars; `labels` name the lower bound of each, or the bar itself if `named`."""

    title: str
    counts: Sequence[int]
    labels: Sequence[str]
    named: bool = False


def draw_histograms(statistics: Statistics) -> bytes:
    """A PNG that shows what a dataset is made of; equal statistics give equal bytes."""
    counts = statistics.counts
    panels = _panels(counts)
    rows = -(-len(panels) // 2) + 1
    size = 2 * _WIDTH + 3 * _GAP, _TOP + rows * (_HEIGHT + _GAP)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, 18), "What the samples are made of", font=letters(26), fill=INK)
    total = f"{sum(counts.scale):,} samples"
    draw.text((size[0] - _GAP, 26), total, font=letters(18), fill=FAINT, anchor="ra")
    for index, panel in enumerate(panels):
        left = _GAP + index % 2 * (_WIDTH + _GAP)
        _draw_bars(draw, (left, _TOP + index // 2 * (_HEIGHT + _GAP)), panel)
    _draw_latents(draw, (_GAP, _TOP + (rows - 1) * (_HEIGHT + _GAP)), statistics.latent)
    return png_bytes(page)


def _panels(counts: Counts) -> list[_Bars]:
    common = sorted(counts.buckets, key=lambda name: (-counts.buckets[name], name))[:_MOST_BUCKETS]
    shown = sorted(common, key=_aspect)
    of_all = f", {len(shown)} most used of {len(counts.buckets)}"
    more = of_all if len(shown) < len(counts.buckets) else ""
    return [
        _numbers("Scale: how many times smaller the LQ was", counts.scale, bins.SCALE),
        _numbers("Photos: shorter side, pixels", counts.photo_side, bins.PHOTO_SIDE),
        _Bars(
            f"Buckets: height x width{more}", [counts.buckets[n] for n in shown], shown, named=True
        ),
        _numbers("JPEG quality of the LQ", counts.jpeg_quality, bins.JPEG_QUALITY),
        _numbers(
            "Gaussian noise of the LQ: sigma, 8-bit levels",
            counts.gaussian_sigma,
            bins.GAUSSIAN_SIGMA,
        ),
        _numbers("Poisson noise of the LQ: scale", counts.poisson_scale, bins.POISSON_SCALE),
    ]


def _numbers(title: str, counts: Sequence[int], bounds: Sequence[float]) -> _Bars:
    """The part of the bins that anything fell into."""
    used = [index for index, count in enumerate(counts) if count]
    if not used:
        return _Bars(title, (), ())
    part = slice(used[0], used[-1] + 1)
    return _Bars(title, counts[part], [f"{bound:g}" for bound in bounds[part]])


def _aspect(bucket: str) -> tuple[float, int]:
    height, width = (int(side) for side in bucket.split("x"))
    return width / height, width


def _draw_bars(draw: ImageDraw.ImageDraw, corner: tuple[int, int], bars: _Bars) -> None:
    left, top, right, bottom = _frame(draw, corner, _WIDTH, bars.title)
    total, highest = sum(bars.counts), max(bars.counts, default=0)
    if not total:
        middle = (left + right) / 2, (top + bottom) / 2
        draw.text(middle, "none", font=letters(16), fill=FAINT, anchor="mm")
        return
    share = f"highest bar: {highest:,} ({highest / total:.0%})"
    draw.text((right, top - 24), share, font=letters(13), fill=FAINT, anchor="ra")
    pitch = min((right - left) / len(bars.counts), 90)
    start = (left + right - pitch * len(bars.counts)) / 2
    every = math.ceil(_label_width(draw, bars.labels) / pitch)
    for index, (count, label) in enumerate(zip(bars.counts, bars.labels, strict=True)):
        x = start + index * pitch
        height = (bottom - top) * count / highest
        gap = min(2.0, pitch / 8)
        if count:
            box = (x + gap, min(bottom - height, bottom - 1), x + pitch - gap, bottom)
            draw.rectangle(box, fill=BLUE)
        if index % every == 0:
            at = x + pitch / 2 if bars.named else x
            draw.line((at, bottom, at, bottom + 4), fill=FAINT)
            draw.text((at, bottom + 8), label, font=letters(13), fill=FAINT, anchor="ma")
    draw.line((left, bottom, right, bottom), fill=FAINT)


def _draw_latents(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], latent: LatentStatistics
) -> None:
    """Standard deviation of each channel as a bar, mean as a dot, both over the same zero."""
    title = "Latents of the HQ: standard deviation (bars) and mean (dots) of each channel"
    left, top, right, bottom = _frame(draw, corner, 2 * _WIDTH + _GAP, title)
    left += 44
    high = max(*latent.std, *latent.mean, 1e-9)
    low = min(*latent.mean, 0.0)
    pitch = (right - left) / len(latent.std)

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    for value in sorted({low, 0.0, high}):
        y = height_of(value)
        draw.line((left, y, right, y), fill=LINE)
        draw.text((left - 8, y), f"{value:.2f}", font=letters(13), fill=FAINT, anchor="rm")
    radius = max(1.5, min(5.0, pitch / 3))
    for channel, (mean, std) in enumerate(zip(latent.mean, latent.std, strict=True)):
        x = left + (channel + 0.5) * pitch
        wide = min(pitch * 0.4, 30)
        draw.rectangle((x - wide, height_of(std), x + wide, height_of(0)), fill=BLUE)
        y = height_of(mean)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ORANGE)
    step = max(1, math.ceil(len(latent.std) / 16))
    for channel in range(0, len(latent.std), step):
        at = left + (channel + 0.5) * pitch, bottom + 8
        draw.text(at, str(channel), font=letters(13), fill=FAINT, anchor="ma")


def _frame(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, title: str
) -> tuple[int, int, int, int]:
    """Draws an empty panel; left, top, right, bottom of what may be drawn in."""
    x, y = corner
    box = (x, y, x + width, y + _HEIGHT)
    draw.rounded_rectangle(box, radius=8, fill=PANEL, outline=LINE)
    draw.text((x + _LEFT, y + 12), title, font=letters(16), fill=INK)
    return x + _LEFT, y + _HEAD + 16, x + width - _RIGHT, y + _HEIGHT - _FOOT


def _label_width(draw: ImageDraw.ImageDraw, labels: Sequence[str]) -> float:
    return 12 + max(draw.textlength(label, font=letters(13)) for label in labels)

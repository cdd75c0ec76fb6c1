"""Renders a few samples as one picture: HQ | LQ | negative, each with what was drawn below it."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from datagen.dataset.records import DrawnSample
from datagen.degradation import parameters as params
from datagen.samples.codecs import DecodedSample

_WIDTH = 4.0
"""Of a column, inches of 100 pixels."""
_GAP = 0.05
_TOP = 0.4
_LINE_HEIGHT = 0.16
_LETTERS = 56
"""That fit below a picture."""


@dataclass(frozen=True)
class PreviewRow:
    """One sample: its draws, and its pictures as decoded from the stored latents."""

    drawn: DrawnSample
    images: DecodedSample


def render_preview(rows: Sequence[PreviewRow]) -> bytes:
    """A PNG with one row for each sample; equal rows give equal bytes."""
    captions = [_captions(row.drawn) for row in rows]
    pictures = [_WIDTH * min(1.0, row.images.hq.shape[0] / row.images.hq.shape[1]) for row in rows]
    texts = [_LINE_HEIGHT * max(caption.count("\n") + 3 for caption in one) for one in captions]
    width, height = 3 * _WIDTH, _TOP + sum(pictures) + sum(texts)
    figure = Figure(figsize=(width, height))
    for column, title in enumerate(("HQ", "LQ", "Negative")):
        figure.text((column + 0.5) / 3, 1 - 0.5 * _TOP / height, title, ha="center", va="center")
    top = height - _TOP
    for row, caption, picture, text in zip(rows, captions, pictures, texts, strict=True):
        for column, image in enumerate(vars(row.images).values()):
            left, bottom = column / 3 + _GAP / width, (top - picture) / height
            axes = figure.add_axes((left, bottom, 1 / 3 - 2 * _GAP / width, picture / height))
            axes.imshow(image)
            axes.set_axis_off()
            axes.set_anchor("W")
            below = bottom - 0.5 * _LINE_HEIGHT / height
            figure.text(left, below, caption[column], va="top", size="small", parse_math=False)
        top -= picture + text
    return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG without times and program names."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The name of a photo may have letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()


def choose_samples(keys: Iterable[str], count: int) -> list[str]:
    """At most `count` of the keys: those of photos not chosen yet come first."""
    photos: dict[str, list[str]] = {}
    for key in keys:
        photos.setdefault(key.rpartition("-")[0], []).append(key)
    ranked = [(rank, key) for keys in photos.values() for rank, key in enumerate(keys)]
    return [key for _, key in sorted(ranked, key=lambda item: item[0])][:count]


def _captions(drawn: DrawnSample) -> tuple[str, str, str]:
    turns = drawn.orientation.quarter_turns
    facts = [
        drawn.bucket,
        f"crop {drawn.crop.width}x{drawn.crop.height} at {drawn.crop.left}, {drawn.crop.top}",
        *([f"rotated by {90 * turns}"] if turns else []),
        *(["mirrored"] if drawn.orientation.flip else []),
    ]
    name = textwrap.shorten(drawn.source.rsplit("/", 1)[-1], _LETTERS, placeholder="...")
    hq = f"{name}\n{drawn.key}\n{_wrapped(facts)}"
    return hq, _degradation(drawn.lq), _degradation(drawn.neg)


def _degradation(drawn: params.DegradationParams) -> str:
    parts = [part for operation in drawn.operations if (part := _describe(operation))]
    return f"scale {drawn.scale:.1f}\n{_wrapped(parts)}"


def _wrapped(parts: Sequence[str]) -> str:
    """Joined with commas, in lines that end after a comma: the other spaces do not break."""
    whole = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts]
    return textwrap.fill(", ".join(whole), _LETTERS, break_on_hyphens=False)


def _describe(operation: object) -> str:
    match operation:
        case params.BlurParams():
            return f"blur {operation.shape.replace('_', ' ')} {_sigmas(operation)}"
        case params.SincParams():
            return f"sinc {operation.omega:.1f}"
        case params.ResizeParams():
            return f"resize {operation.mode} {operation.factor:.2f}"
        case params.MaskParams():
            return f"mask {operation.fraction:.0%}"
        case params.DownscaleParams():
            return f"down {operation.mode}"
        case params.GaussianNoiseParams():
            return f"{'gray ' if operation.gray else ''}noise {operation.sigma:.1f}"
        case params.PoissonNoiseParams():
            return f"{'gray ' if operation.gray else ''}poisson {operation.scale:.2f}"
        case params.JpegParams():
            return f"jpeg {operation.quality}"
        case params.ResizeBackParams():
            return f"up {operation.mode}"
    return ""


def _sigmas(blur: params.BlurParams) -> str:
    both = f"{blur.sigma_x:.1f}", f"{blur.sigma_y:.1f}"
    return both[0] if both[0] == both[1] else " x ".join(both)

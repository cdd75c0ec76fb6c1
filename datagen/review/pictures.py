"""Renders what a dataset is made of: a few samples, and the histograms of all."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datagen.dataset import statistics as bins
from datagen.dataset.records import DrawnSample
from datagen.dataset.statistics import Counts, LatentStatistics, Statistics
from datagen.degradation import parameters as params
from datagen.samples.buckets import Bucket
from datagen.samples.stored import Pictures
from datagen.settings import LATENT_NAMES

_WIDTH = 4.0
"""Of a column, inches of 100 pixels."""
_GAP = 0.05
_TOP = 0.4
_LINE_HEIGHT = 0.16
_LETTERS = 56
"""That fit below a picture."""
_MOST_BUCKETS = 24
_MOST_LABELS = 16


def render_preview(samples: Sequence[tuple[DrawnSample, Pictures]]) -> bytes:
    """A PNG with a row for each sample: HQ, LQ and negative, and below each what was drawn for it;
    of what is not stored only that.

    Equal samples give equal bytes.
    """
    captions = [_captions(drawn) for drawn, _ in samples]
    shapes = [next(iter(made.values())).shape for _, made in samples]
    pictures = [_WIDTH * min(1.0, height / width) for height, width, _ in shapes]
    texts = [_LINE_HEIGHT * max(caption.count("\n") + 3 for caption in one) for one in captions]
    width, height = 3 * _WIDTH, _TOP + sum(pictures) + sum(texts)
    figure = Figure(figsize=(width, height))
    for column, title in enumerate(("HQ", "LQ", "Negative")):
        figure.text((column + 0.5) / 3, 1 - 0.5 * _TOP / height, title, ha="center", va="center")
    top = height - _TOP
    for (_, made), caption, picture, text in zip(samples, captions, pictures, texts, strict=True):
        for column, name in enumerate(LATENT_NAMES):
            left, bottom = column / 3 + _GAP / width, (top - picture) / height
            axes = figure.add_axes((left, bottom, 1 / 3 - 2 * _GAP / width, picture / height))
            if name in made:
                axes.imshow(made[name])
            axes.set_axis_off()
            axes.set_anchor("W")
            below = bottom - 0.5 * _LINE_HEIGHT / height
            figure.text(left, below, caption[column], va="top", size="small", parse_math=False)
        top -= picture + text
    return _png(figure)


def _png(figure: Figure) -> bytes:
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
        *(["augmented"] if drawn.replay and drawn.replay["applied"] else []),
    ]
    hq = f"{_name(drawn.source)}\n{drawn.key}\n{_wrapped(facts)}"
    lq = _real(drawn) if drawn.lq is None else _degradation(drawn.lq)
    return hq, lq, _degradation(drawn.neg)


def _real(drawn: DrawnSample) -> str:
    assert drawn.real_lq is not None, "an LQ is degraded or real"
    found = drawn.real_lq.registration
    facts = [f"registered at {found.scale:.3f}", f"shift {found.shift_x:z.1f} {found.shift_y:z.1f}"]
    return f"scale {drawn.scale:.1f}, real\n{_name(drawn.real_lq.source)}\n{_wrapped(facts)}"


def _name(uri: str) -> str:
    return textwrap.shorten(uri.rsplit("/", 1)[-1], _LETTERS, placeholder="...")


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
        case params.BoxParams():
            return f"box {operation.side:.0%}"
        case params.GreyParams() | params.UsmParams():
            return operation.kind
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


def render_histograms(statistics: Statistics) -> bytes:
    """A PNG that shows what a dataset is made of; equal statistics give equal bytes."""
    counts = statistics.counts
    # A Figure without pyplot keeps no global state and needs no display.
    figure = Figure(figsize=(12, 12))
    figure.suptitle(f"{sum(counts.scale):,} samples", size="x-large")
    margins = {"left": 0.05, "right": 0.98, "bottom": 0.04, "top": 0.93}
    grid = figure.add_gridspec(4, 2, **margins, hspace=0.5, wspace=0.12)
    panels = [figure.add_subplot(grid[index // 2, index % 2]) for index in range(6)]
    _bars(panels[0], "Scale: HQ size over LQ size", counts.scale, bins.SCALE)
    _bars(panels[1], "Photos: shorter side, pixels", counts.photo_side, bins.PHOTO_SIDE)
    _bucket_bars(panels[2], counts)
    _bars(panels[3], "JPEG quality of the LQ", counts.jpeg_quality, bins.JPEG_QUALITY)
    sigma = "Gaussian noise of the LQ: sigma, 8-bit levels"
    _bars(panels[4], sigma, counts.gaussian_sigma, bins.GAUSSIAN_SIGMA)
    poisson = "Poisson noise of the LQ: scale"
    _bars(panels[5], poisson, counts.poisson_scale, bins.POISSON_SCALE)
    _latent_bars(figure.add_subplot(grid[3, :]), statistics.latent)
    return _png(figure)


def _bars(axes: Axes, title: str, counts: Sequence[int], bounds: Sequence[float]) -> None:
    """A bar for each bin between the first and the last used one, labeled by its lower bound."""
    axes.set_title(title)
    used = [index for index, count in enumerate(counts) if count]
    if not used:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    part = slice(used[0], used[-1] + 1)
    shown = counts[part]
    axes.bar(range(len(shown)), shown, align="edge", width=0.9)
    step = -(-len(shown) // _MOST_LABELS)
    labels = [f"{bound:g}" for bound in bounds[part][::step]]
    axes.set_xticks(range(0, len(shown), step), labels, size="small")
    axes.locator_params("y", integer=True)


def _bucket_bars(axes: Axes, counts: Counts) -> None:
    """The most common buckets, from tall to wide."""
    common = sorted(counts.buckets, key=lambda name: (-counts.buckets[name], name))[:_MOST_BUCKETS]
    sizes = {name: Bucket.from_name(name) for name in common}
    shown = sorted(common, key=lambda name: (sizes[name].width / sizes[name].height, sizes[name]))
    hidden = len(counts.buckets) - len(shown)
    more = f", {hidden} rarer ones not shown" if hidden else ""
    axes.set_title(f"Buckets: height x width{more}")
    axes.bar(shown, [counts.buckets[name] for name in shown])
    axes.tick_params("x", labelsize="small", rotation=90 if len(shown) > 6 else 0)
    axes.locator_params("y", integer=True)


def _latent_bars(axes: Axes, latent: LatentStatistics) -> None:
    axes.set_title("Latents of the HQ, by channel")
    channels = range(len(latent.std))
    axes.bar(channels, latent.std, label="standard deviation")
    axes.plot(channels, latent.mean, "o", markersize=4, color="tab:orange", label="mean")
    axes.locator_params("x", integer=True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)

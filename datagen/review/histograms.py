"""Renders a dataset's statistics as one picture: scales, photos, buckets, noise, JPEG, latents."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datagen.dataset import statistics as bins
from datagen.dataset.statistics import Counts, LatentStatistics, Statistics
from datagen.review.preview import figure_png

_MOST_BUCKETS = 24
_MOST_LABELS = 16


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
    return figure_png(figure)


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
    shown = sorted(common, key=_aspect_ratio)
    hidden = len(counts.buckets) - len(shown)
    more = f", {hidden} rarer ones not shown" if hidden else ""
    axes.set_title(f"Buckets: height x width{more}")
    axes.bar(shown, [counts.buckets[name] for name in shown])
    axes.tick_params("x", labelsize="small", rotation=90 if len(shown) > 6 else 0)
    axes.locator_params("y", integer=True)


def _aspect_ratio(bucket: str) -> tuple[float, int]:
    height, width = (int(side) for side in bucket.split("x"))
    return width / height, width


def _latent_bars(axes: Axes, latent: LatentStatistics) -> None:
    axes.set_title("Latents of the HQ, by channel")
    channels = range(len(latent.std))
    axes.bar(channels, latent.std, label="standard deviation")
    axes.plot(channels, latent.mean, "o", markersize=4, color="tab:orange", label="mean")
    axes.locator_params("x", integer=True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)

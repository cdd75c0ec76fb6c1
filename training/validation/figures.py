"""A validation's losses over time and spectra, as a table and as figures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.validation.quality import Points
from training.validation.validator import Validation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVALS = 8
"""Times are rounded to a grid with so many intervals."""


def over_time_table(over_time: Mapping[str, Points]) -> str:
    """Each loss's mean and number of samples by time, in the JSON that MLflow shows as a table;
    empty without values."""
    columns = ["t"]
    rows: dict[float, list[float | str]] = {}
    for name, points in over_time.items():
        found = _means(points)
        if found:
            columns += [name, f"{name} samples"]
        for t, (mean, count) in found.items():
            row = rows.setdefault(t, [t])
            row += [""] * (len(columns) - 2 - len(row))
            row += [float(f"{mean:.4g}"), count]
    data = [[*rows[t], *[""] * (len(columns) - len(rows[t]))] for t in sorted(rows)]
    return json.dumps({"columns": columns, "data": data}) if data else ""


def _means(points: Points) -> dict[float, tuple[float, int]]:
    """Mean and count of the values at each time of the grid that has some."""
    values: dict[float, list[float]] = {}
    for t, value in points:
        values.setdefault(round(t * INTERVALS) / INTERVALS, []).append(value)
    return {t: (fmean(values[t]), len(values[t])) for t in sorted(values)}


def draw_figures(found: Validation) -> dict[str, Image.Image]:
    """`figures/loss_over_time` and `figures/spectra`; nothing without held-out samples."""
    if not found.metrics:
        return {}
    from matplotlib.figure import Figure  # 0.6 s, and needed at the end of a stage only

    losses, spectra = Figure(figsize=(7, 4)), Figure(figsize=(7, 4))
    axes = losses.subplots()
    for name, points in found.over_time.items():
        if means := _means(points):
            axes.plot(list(means), [mean for mean, _ in means.values()], marker="o", label=name)
    axes.set(xlabel="time t (1 is LQ, 0 is HQ)", ylabel="held-out loss", yscale="log")
    axes.legend()
    axes = spectra.subplots()
    for method, power in found.spectra.items():
        frequency = (np.arange(len(power)) + 0.5) / len(power) / 2
        axes.plot(frequency, power, label=method, ls="--" if method == "original" else "-")
    axes.set(xlabel="spatial frequency, cycles per pixel", ylabel="power", yscale="log")
    axes.legend()
    return {"figures/loss_over_time": _image(losses), "figures/spectra": _image(spectra)}


def _image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return Image.open(buffer)

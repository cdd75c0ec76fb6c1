"""Curves of a report as SVG: each metric over the number of steps, and PSNR against a perceptual
metric."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from training.evaluation.metrics.metric import Better
from training.evaluation.report.tables import Cell, MethodRow
from training.run_dir.records import PSNR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = "#1f6feb"
BASELINES = ("#8b6f47", "#b3372f", "#1a7f4b", "#7b4fb3", "#5b6675")
"""Colors of methods without steps, in turn."""


def steps_chart(rows: Sequence[MethodRow], metric: str, better: Better | None) -> str | None:
    """A metric with its intervals over the steps of each model, methods without steps as lines;
    None where no model has two numbers of steps."""
    from matplotlib.figure import Figure  # 0.6 s, and needed for reports only

    found = [(row, cell) for row in rows if (cell := _cell(row, metric)) is not None]
    models = sorted({row.method for row, _ in found if row.steps})
    if all(len([row for row, _ in found if row.method == name]) < 2 for name in models):
        return None
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    for name in models:
        own = [(row.steps, cell.value) for row, cell in found if row.method == name]
        steps, means = [step for step, _ in own], [value.mean for _, value in own]
        axes.plot(steps, means, "o-", label=name, color=LINE if len(models) == 1 else None)
        axes.fill_between(
            steps, [value.low for _, value in own], [value.high for _, value in own], alpha=0.15
        )
    others = [(row, cell) for row, cell in found if not row.steps]
    for (row, cell), color in zip(others, itertools.cycle(BASELINES), strict=False):
        axes.axhline(cell.value.mean, linestyle="--", color=color, label=row.method)
    axes.set_xlabel("steps (network evaluations)")
    axes.set_ylabel(f"{metric}{f' ({better} is better)' if better else ''}")
    axes.set_xticks(sorted({row.steps for row, _ in found if row.steps}))
    axes.legend(frameon=False)
    return svg(figure)


def trade_chart(
    rows: Sequence[MethodRow], perceptual: str, better: Mapping[str, Better]
) -> str | None:
    """Distortion (PSNR) against perception: each method a point, a model's points joined."""
    from matplotlib.figure import Figure

    points = [
        (row, of_psnr.value.mean, of_other.value.mean)
        for row in rows
        if (of_psnr := _cell(row, PSNR)) is not None
        and (of_other := _cell(row, perceptual)) is not None
    ]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    for name in sorted({row.method for row, _, _ in points}):
        own = [(x, y) for row, x, y in points if row.method == name]
        axes.plot([x for x, _ in own], [y for _, y in own], "o-", label=name)
    for row, x, y in points:
        if row.steps:
            axes.annotate(str(row.steps), (x, y), xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel("psnr_rgb, dB (right is closer to the original)")
    axes.set_ylabel(f"{perceptual} ({better.get(perceptual, '')} is better)")
    axes.legend(frameon=False)
    return svg(figure)


def _cell(row: MethodRow, metric: str) -> Cell | None:
    return next((cell for cell in row.cells if cell.metric == metric), None)


def svg(figure: Figure) -> str:
    """A matplotlib figure as an element of a page, the same text for the same numbers."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "flowmapsr", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]

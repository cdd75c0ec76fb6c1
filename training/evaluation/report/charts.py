"""Curves of a report as SVG: each metric over steps and strengths, and PSNR against a perceptual
metric."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from training.evaluation.metrics.metric import Better
from training.evaluation.report.tables import Cell, MethodRow
from training.run_dir.records import PSNR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE, UNNAMED = "#1f6feb", "#b7c0cc"
MOST_NAMED = 6
"""Above so many curves only the first and the last are told by name and color."""
BASELINES = ("#8b6f47", "#b3372f", "#1a7f4b", "#7b4fb3", "#5b6675")
"""Colors of methods without steps, in turn."""


class Axis(NamedTuple):
    """What the rows of a model differ in."""

    label: str
    value: Callable[[MethodRow], float | None]
    """None for a row without it."""
    text: str
    """Of one value, such as `LoRA 2`."""


AXES = (
    Axis("steps (network evaluations)", lambda row: row.steps or None, "{:g} steps"),
    Axis("LoRA scale", lambda row: row.lora_scale, "LoRA {:g}"),
    Axis("guidance w", lambda row: row.guidance, "w {:g}"),
)


def curves(rows: Sequence[MethodRow], axis: Axis) -> dict[str, list[tuple[float, MethodRow]]]:
    """Rows of models that differ in nothing but this, with its values and in their order, by what
    they share; without those that have no second one beside them."""
    found: dict[str, list[tuple[float, MethodRow]]] = {}
    for row in rows:
        place = axis.value(row)
        if place is None:
            continue
        alike = [one for one in rows if one.model == row.model]
        shared = [
            one.text.format(value)
            for one in AXES
            if one is not axis
            and (value := one.value(row)) is not None
            and len({one.value(other) for other in alike}) > 1
        ]
        found.setdefault(", ".join([row.model, *shared]), []).append((place, row))
    return {
        name: sorted(own, key=lambda one: one[0]) for name, own in found.items() if len(own) > 1
    }


def metric_chart(
    rows: Sequence[MethodRow], metric: str, better: Better | None, axis: Axis
) -> str | None:
    """A metric with its intervals over what rows differ in, methods without it as lines; None where
    there is no such curve."""
    from matplotlib.figure import Figure  # 0.6 s, and needed for reports only

    measured = [row for row in rows if _cell(row, metric) is not None]
    found = curves(measured, axis)
    if not found:
        return None
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    for name, own in found.items():
        places = [place for place, _ in own]
        values = [cell.value for _, row in own if (cell := _cell(row, metric)) is not None]
        means = [one.mean for one in values]
        axes.plot(places, means, "o-", **_look(found, name))
        if len(found) == 1:  # those of several would hide each other
            low, high = [one.low for one in values], [one.high for one in values]
            axes.fill_between(places, low, high, alpha=0.15)
    others = [row for row in measured if not row.steps]
    for row, color in zip(others, itertools.cycle(BASELINES), strict=False):
        cell = _cell(row, metric)
        assert cell is not None
        axes.axhline(cell.value.mean, linestyle="--", color=color, label=row.method)
    axes.set_xlabel(axis.label)
    axes.set_ylabel(f"{metric}{f' ({better} is better)' if better else ''}")
    axes.set_xticks(sorted({place for own in found.values() for place, _ in own}))
    axes.legend(frameon=False)
    return svg(figure)


def trade_chart(
    rows: Sequence[MethodRow], perceptual: str, better: Mapping[str, Better]
) -> str | None:
    """Distortion (PSNR) against perception: each row a point, those of a curve joined."""
    from matplotlib.figure import Figure

    measured = [row for row in rows if _cell(row, PSNR) and _cell(row, perceptual)]
    if len(measured) < 2:
        return None
    # Over the steps where they differ; else over a strength.
    axis = next((one for one in AXES if curves(measured, one)), AXES[0])
    found = curves(measured, axis)
    joined = {row.label for own in found.values() for _, row in own}
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    for name, own in found.items():
        points = [(_mean(row, PSNR), _mean(row, perceptual)) for _, row in own]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", **_look(found, name))
        for (value, _), point in zip(own, points, strict=True):
            axes.annotate(f"{value:g}", point, xytext=(4, 4), textcoords="offset points")
    for row in (one for one in measured if one.label not in joined):
        axes.plot(_mean(row, PSNR), _mean(row, perceptual), "s", label=row.label)
    axes.set_xlabel("psnr_rgb, dB (right is closer to the original)")
    axes.set_ylabel(f"{perceptual} ({better.get(perceptual, '')} is better)")
    axes.legend(frameon=False, title=f"numbers: {axis.label}" if found else None)
    return svg(figure)


def _look(curves: Mapping[str, object], name: str) -> dict[str, Any]:
    """Name and color of a curve; of many only the first and the last have one."""
    if len(curves) <= MOST_NAMED:
        return {"label": name, "color": LINE if len(curves) == 1 else None}
    ends = {next(iter(curves)): LINE, next(reversed(list(curves))): BASELINES[0]}
    return {"label": name if name in ends else None, "color": ends.get(name, UNNAMED)}


def _mean(row: MethodRow, metric: str) -> float:
    cell = _cell(row, metric)
    assert cell is not None
    return cell.value.mean


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

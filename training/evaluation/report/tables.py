"""The rows of an evaluation as a report shows them: means with intervals, and differences that are
more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.differences import Verdict, values_by_method, verdict
from training.evaluation.metrics.metric import Better
from training.evaluation.statistics import Interval, mean_interval, paired_difference
from training.run_dir.records import BICUBIC, EvaluationRow, PictureRow


@dataclass(frozen=True)
class Cell:
    """A metric of a method at a scale."""

    metric: str
    value: Interval
    difference: Interval | None
    """From the baseline, photo by photo; None for itself and for metrics of sets."""
    verdict: Verdict
    """Of the difference: `may be chance` where its interval holds zero."""


@dataclass(frozen=True)
class MethodRow:
    """A method at a scale."""

    method: str
    model: str
    """Without the strengths that a sweep sets."""
    steps: int
    lora_scale: float | None
    guidance: float | None
    seconds: float
    parameters: int | None
    gflop: float | None
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        return method_label(self.method, self.steps)


def method_label(method: str, steps: int) -> str:
    """A method as it is written in the report: `flowmapsr, 2 steps`."""
    return f"{method}, {steps} step{'s' if steps > 1 else ''}" if steps else method


def table(
    rows: Sequence[EvaluationRow],
    pictures: Sequence[PictureRow],
    scale: float,
    better: Mapping[str, Better],
    *,
    models: Sequence[str] = (),
    baseline: str = BICUBIC,
) -> list[MethodRow]:
    """All methods at a scale, compared with the baseline.

    Args:
        better: which way is better, by the name of a metric; others are compared with no verdict.
        models: names of models without the strengths that a sweep sets.
    """
    by_method = values_by_method(pictures, scale)
    of_baseline = by_method.get((baseline, 0), {})
    found = []
    for row in (row for row in rows if row.scale == scale):
        values = by_method[row.method, row.steps]
        cells = [
            _cell(name, mean, values.get(name), of_baseline.get(name), better.get(name))
            for name, mean in row.values.items()
        ]
        if row.method == baseline:
            cells = [Cell(cell.metric, cell.value, None, "") for cell in cells]
        found.append(
            MethodRow(
                method=row.method,
                model=_model_of(row.method, models),
                steps=row.steps,
                lora_scale=row.lora_scale,
                guidance=row.guidance,
                seconds=row.seconds,
                parameters=row.parameters,
                gflop=row.gflop,
                cells=tuple(cells),
            )
        )
    return found


def _model_of(method: str, models: Sequence[str]) -> str:
    return max(
        (one for one in models if f"{method} ".startswith(f"{one} ")), key=len, default=method
    )


def _cell(
    name: str,
    mean: float,
    own: Mapping[str, float] | None,
    others: Mapping[str, float] | None,
    better: Better | None,
) -> Cell:
    if own is None:  # of all pictures as a set
        return Cell(name, Interval(mean, float("nan"), float("nan"), 0), None, "")
    difference = None if others is None else paired_difference(own, others)
    return Cell(name, mean_interval(own), difference, verdict(difference, better))

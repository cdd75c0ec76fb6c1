"""Two models of one evaluation compared photo by photo: which is better, and where that may be
chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import ConfigDict

from datagen.records import FrozenModel
from training.evaluation.metrics.metric import Better
from training.evaluation.scores import MethodKey
from training.evaluation.statistics import Interval, paired_difference
from training.run_dir.records import Evaluation, PictureRow

Verdict = Literal["better", "worse", "may be chance", ""]


class Difference(FrozenModel):
    """A model minus another one that restores in as many steps, as a mean over photos."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    method: str
    against: str
    scale: float
    steps: int
    metric: str
    mean: float
    low: float
    """Of the 95 % interval; NaN for too few photos."""
    high: float
    photos: int
    verdict: Verdict


def differences(found: Evaluation) -> tuple[Difference, ...]:
    """Of every model from the first one, at each scale and number of steps; none of a model that is
    alone."""
    return tuple(_each(found))


def _each(found: Evaluation) -> Iterator[Difference]:
    for scale in dict.fromkeys(row.scale for row in found.rows):
        by_method = values_by_method(found.pictures, scale)
        models = dict.fromkeys(name for name, steps in by_method if steps)
        if len(models) < 2:
            continue
        first, *others = models
        for name in others:
            for steps in (steps for method, steps in by_method if method == name):
                own, theirs = by_method[name, steps], by_method.get((first, steps), {})
                for metric in (one for one in own if one in theirs):
                    found_one = paired_difference(own[metric], theirs[metric])
                    yield Difference(
                        method=name,
                        against=first,
                        scale=scale,
                        steps=steps,
                        metric=metric,
                        mean=found_one.mean,
                        low=found_one.low,
                        high=found_one.high,
                        photos=found_one.count,
                        verdict=verdict(found_one, found.better.get(metric)),
                    )


def values_by_method(
    pictures: Sequence[PictureRow], scale: float
) -> dict[MethodKey, dict[str, dict[str, float]]]:
    """Method and steps -> metric -> photo -> value."""
    found: dict[MethodKey, dict[str, dict[str, float]]] = {}
    for row in sorted(pictures, key=lambda one: one.photo):
        if row.scale == scale:
            metrics = found.setdefault((row.method, row.steps), {})
            for name, value in row.values.items():
                metrics.setdefault(name, {})[row.photo] = value
    return found


def verdict(difference: Interval | None, better: Better | None) -> Verdict:
    """What an interval says; nothing without a way that is better."""
    if difference is None or better is None:
        return ""
    if not difference.excludes_zero:
        return "may be chance"
    return "better" if (difference.mean > 0) == (better == "higher") else "worse"


class DifferenceRow(NamedTuple):
    """A model at a scale in a number of steps, compared with the first one."""

    method: str
    scale: float
    steps: int
    cells: dict[str, Difference]
    """By metric."""


def difference_rows(found: Sequence[Difference]) -> list[DifferenceRow]:
    """As a table has them."""
    rows: dict[tuple[str, float, int], dict[str, Difference]] = {}
    for one in found:
        rows.setdefault((one.method, one.scale, one.steps), {})[one.metric] = one
    return [DifferenceRow(*key, cells) for key, cells in rows.items()]

"""From what was measured of each photo to what methods are worth: the table, the rows behind it,
and everything that is missing in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.cost import Cost
from training.evaluation.measure import (
    ORIGINAL,
    Measurement,
    Method,
    measure_all,
    measure_original,
)
from training.evaluation.metrics.metric import Metrics, NotMeasurable
from training.evaluation.photos import DegradedPhoto
from training.run_dir.records import PSNR, SSIM, EvaluationRow, PictureRow

MethodKey = tuple[str, int]
"""Name and steps: which method it is, at a scale."""


@dataclass(frozen=True)
class Scores:
    """Of all methods at one scale."""

    rows: tuple[EvaluationRow, ...]
    """Without the methods that have no result at all."""
    pictures: tuple[PictureRow, ...]
    seconds: tuple[float, ...]
    """Of each of these pictures."""
    notes: tuple[str, ...]


def score(
    photos: Sequence[DegradedPhoto], methods: Sequence[Method], scale: float, metrics: Metrics
) -> Scores:
    """Measures every method on every photo, here."""
    originals = photos if metrics.of_sets else ()
    found = [
        *measure_all(methods, photos, scale, metrics),
        *(measure_original(photo, scale, metrics) for photo in originals),
    ]
    costs = {(one.name, one.steps): one.cost for one in methods if one.cost is not None}
    return summarize(found, scale, metrics, costs)


def summarize(
    found: Sequence[Measurement],
    scale: float,
    metrics: Metrics,
    costs: Mapping[MethodKey, Cost],
) -> Scores:
    """The rows of all methods at a scale, in the order in which they are first found; a metric
    that one of a method's photos does not have is a mean over the others."""
    originals = [one for one in found if one.measured.method == ORIGINAL]
    results = [one for one in found if one.measured.seconds is not None]
    by_method: dict[MethodKey, list[Measurement]] = {}
    for one in results:
        by_method.setdefault((one.measured.method, one.measured.steps), []).append(one)
    rows = []
    uncompared: dict[str, str] = {}
    for key, own in by_method.items():
        values, missed = _values(own, originals, metrics)
        rows.append(_row(own, values, costs.get(key)))
        uncompared |= missed
    return Scores(
        rows=tuple(rows),
        pictures=tuple(one.measured.row for one in results),
        seconds=tuple(one.measured.seconds or 0.0 for one in results),
        notes=tuple(_notes(found, uncompared, scale)),
    )


def _values(
    own: Sequence[Measurement], originals: Sequence[Measurement], metrics: Metrics
) -> tuple[dict[str, float], dict[str, str]]:
    """A method's value of each metric, and why there is none."""
    values: dict[str, float] = {}
    missed: dict[str, str] = {}
    for name in (one.name for one in metrics.of_pictures):
        each = [one.measured.values[name] for one in own if name in one.measured.values]
        if each:
            values[name] = float(np.mean(each))
    for metric in metrics.of_sets:
        theirs, ours = _features(originals, metric.of), _features(own, metric.of)
        if theirs and ours:
            try:
                values[metric.name] = metric.compare(np.concatenate(ours), np.concatenate(theirs))
            except NotMeasurable as error:
                missed[metric.name] = str(error)
    return values, missed


def _features(found: Iterable[Measurement], name: str) -> list[np.ndarray]:
    return [one.features[name] for one in found if name in one.features]


def _row(
    own: Sequence[Measurement], values: Mapping[str, float], cost: Cost | None
) -> EvaluationRow:
    first = own[0].measured
    return EvaluationRow(
        method=first.method,
        scale=first.scale,
        steps=first.steps,
        lora_scale=first.lora_scale,
        guidance=first.guidance,
        psnr=values.get(PSNR),
        ssim=values.get(SSIM),
        seconds=float(np.mean([one.measured.seconds for one in own])),
        parameters=cost.parameters if cost else None,
        gflop=cost.gflop if cost else None,
        photos=len(own),
        values=dict(values),
    )


def _notes(found: Sequence[Measurement], uncompared: Mapping[str, str], scale: float) -> list[str]:
    """On every metric that lacks values: a photo, why, and how many more; and on what is wrong
    with results."""
    missed: dict[str, dict[str, str]] = {}
    flaws: dict[tuple[str, str], list[str]] = {}
    for one in (each.measured for each in found):
        for name, why in one.missed.items():
            missed.setdefault(name, {}).setdefault(one.photo, why)
        if one.flaw is not None:
            flaws.setdefault((one.method, one.flaw.what), []).append(one.flaw.of)
    return [
        *(
            f"{name} at x{scale:g}: {_first(f'{photo}: {why}' for photo, why in photos.items())}"
            for name, photos in missed.items()
        ),
        *(f"{name} at x{scale:g}: {why}" for name, why in uncompared.items()),
        *(f"{method} at x{scale:g}: {what} {_first(of)}" for (method, what), of in flaws.items()),
    ]


def _first(texts: Iterable[str]) -> str:
    """The first one, and how many more there are."""
    first, *others = texts
    return f"{first}, and {len(others)} more" if others else first

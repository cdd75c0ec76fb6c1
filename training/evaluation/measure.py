"""One method on one photo: what it makes of it, in numbers.

Needs no other photo, so that many machines can share the work; `scores.py` makes the table of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from training.evaluation.cost import Cost
from training.evaluation.metrics.metric import Metrics, NotMeasurable
from training.evaluation.photos import DegradedPhoto
from training.run_dir.records import PictureRow

ORIGINAL = "original"
"""Method of what is measured of the photos themselves, for metrics of sets."""


class Flaw(NamedTuple):
    """What is wrong with a result, or why there is none."""

    what: str
    """Such as `no picture in /outputs/other of`; those of one kind are told together."""
    of: str
    """Which picture, and more about it."""


class NoResult(Exception):
    """A method has none for a photo."""

    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw


@dataclass(frozen=True)
class Made:
    """A result that has a flaw."""

    picture: np.ndarray
    flaw: Flaw | None = None


@dataclass(frozen=True)
class Method:
    """A way to restore photos."""

    name: str
    steps: int
    """Network evaluations; 0 for what has none."""
    restore: Callable[[DegradedPhoto], np.ndarray | Made]
    """To RGB uint8 of the original's size. Raises `NoResult`."""
    cost: Cost | None = None
    """None for what has no network."""
    lora_scale: float | None = None
    """As it was set; None is the model's own."""
    guidance: float | None = None

    def make(self, photo: DegradedPhoto) -> Made:
        """
        Raises:
            NoResult: there is none for this photo.
        """
        made = self.restore(photo)
        return made if isinstance(made, Made) else Made(made)


class Measured(PictureRow):
    """What was measured of one result, as a file holds it: its row, and more."""

    values: dict[str, float] = {}
    seconds: float | None = None
    """Of restoring; None where there is no result."""
    missed: dict[str, str] = {}
    """Why there is no value, by metric."""
    flaw: Flaw | None = None

    @property
    def row(self) -> PictureRow:
        kept = self.model_dump(include=set(PictureRow.model_fields))
        return PictureRow.model_validate(kept)


@dataclass(frozen=True)
class Measurement:
    """With what metrics of sets compare."""

    measured: Measured
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """(N, D) by the name of the features."""


def measure_all(
    methods: Sequence[Method], photos: Sequence[DegradedPhoto], scale: float, metrics: Metrics
) -> Iterator[Measurement]:
    """Restores every photo by every method and measures the results, each beside the restoring of
    the next; what one cannot be measured by is told in it."""
    with ThreadPoolExecutor(1) as beside:
        before: Future[Measurement] | None = None
        for method, photo in itertools.product(methods, photos):
            newest = beside.submit(_measured, _restored(method, photo, scale), metrics)
            if before is not None:
                yield before.result()
            before = newest
        if before is not None:
            yield before.result()


class _Result(NamedTuple):
    photo: DegradedPhoto
    measured: Measured
    """Without values as yet."""
    picture: np.ndarray | None
    """None where the method has none."""


def _restored(method: Method, photo: DegradedPhoto, scale: float) -> _Result:
    measured = Measured(
        photo=photo.name,
        method=method.name,
        scale=scale,
        steps=method.steps,
        lora_scale=method.lora_scale,
        guidance=method.guidance,
    )
    start = time.perf_counter()
    try:
        made = method.make(photo)
    except NoResult as none:
        return _Result(photo, measured.model_copy(update={"flaw": none.flaw}), None)
    found = {"seconds": time.perf_counter() - start, "flaw": made.flaw}
    return _Result(photo, measured.model_copy(update=found), made.picture)


def _measured(result: _Result, metrics: Metrics) -> Measurement:
    if result.picture is None:
        return Measurement(result.measured)
    features, missed = _features(result.picture, metrics)
    original, scale = result.photo.original, result.measured.scale
    values: dict[str, float] = {}
    for metric in metrics.of_pictures:
        try:
            values[metric.name] = metric.value(result.picture, original, scale=scale)
        except NotMeasurable as error:
            missed[metric.name] = str(error)
    found = {"values": values, "missed": missed}
    return Measurement(result.measured.model_copy(update=found), features)


def measure_original(photo: DegradedPhoto, scale: float, metrics: Metrics) -> Measurement:
    """What metrics of sets compare results with."""
    assert photo.original is not None
    features, missed = _features(photo.original, metrics)
    measured = Measured(photo=photo.name, method=ORIGINAL, scale=scale, steps=0, missed=missed)
    return Measurement(measured, features)


def _features(
    picture: np.ndarray, metrics: Metrics
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Of a picture by their names, and why it has none, by metrics; metrics share them."""
    found: dict[str, np.ndarray] = {}
    missed: dict[str, str] = {}
    for name, metric in {one.of: one for one in metrics.of_sets}.items():
        try:
            found[name] = metric.features(picture)
        except NotMeasurable as error:
            sharing = ", ".join(one.name for one in metrics.of_sets if one.of == name)
            missed[sharing] = str(error)
    return found, missed

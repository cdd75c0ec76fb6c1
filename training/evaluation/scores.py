"""What the methods of an evaluation are worth: each metric of each restored photo, and of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.evaluation.cost import Cost
from training.evaluation.metrics.metric import Metrics, NotMeasurable, SetMetric
from training.evaluation.photos import DegradedPhoto
from training.run_dir.records import PSNR, SSIM, EvaluationRow, PictureRow

Features = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A way to restore photos."""

    name: str
    steps: int
    """Network evaluations; 0 for what has none."""
    restore: Callable[[DegradedPhoto], np.ndarray]
    """To RGB uint8 of the original's size. Raises `NoResult`."""
    cost: Cost | None = None
    """None for what has no network."""
    notes: Callable[[], list[str]] = list
    """What was wrong with its results, once they are all made."""


class NoResult(Exception):
    """A method has none for a photo."""


@dataclass(frozen=True)
class Scores:
    """Of one method."""

    row: EvaluationRow | None
    """None if it has no result at all."""
    pictures: tuple[PictureRow, ...]


@dataclass
class Scorer:
    """Measures methods on the photos of one scale."""

    photos: Sequence[DegradedPhoto]
    scale: float
    metrics: Metrics
    _of_methods: list[str] = field(default_factory=list)
    _missed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Why, by metric and photo."""
    _of_originals: dict[Features, np.ndarray] = field(default_factory=dict)

    def score(self, method: Method) -> Scores:
        """Restores all photos; a metric that one of them does not have is left out of its row."""
        features: dict[Features, list[np.ndarray]] = {
            one.features: [] for one in self.metrics.of_sets
        }
        pictures = []
        for photo in self.photos:
            start = time.perf_counter()
            try:
                result = method.restore(photo)
            except NoResult:
                continue
            seconds = time.perf_counter() - start
            for find, found in features.items():
                found += self._features(find, photo, result)
            pictures.append(
                PictureRow(
                    photo=photo.name,
                    method=method.name,
                    scale=self.scale,
                    steps=method.steps,
                    seconds=seconds,
                    values=self._values(photo, result),
                )
            )
        self._of_methods += method.notes()
        row = self._row(method, pictures, features) if pictures else None
        return Scores(row, tuple(pictures))

    def _features(
        self, find: Features, photo: DegradedPhoto, picture: np.ndarray
    ) -> list[np.ndarray]:
        """Of the photo or its result; nothing of one that is too small, which is told."""
        try:
            return [find(picture)]
        except NotMeasurable as error:
            names = ", ".join(one.name for one in self.metrics.of_sets if one.features == find)
            self._missed.setdefault(names, {}).setdefault(photo.name, str(error))
            return []

    def _values(self, photo: DegradedPhoto, result: np.ndarray) -> dict[str, float]:
        values = {}
        for metric in self.metrics.of_pictures:
            try:
                values[metric.name] = metric.value(result, photo.original, scale=self.scale)
            except NotMeasurable as error:
                self._missed.setdefault(metric.name, {}).setdefault(photo.name, str(error))
        return values

    def _row(
        self,
        method: Method,
        pictures: Sequence[PictureRow],
        features: dict[Features, list[np.ndarray]],
    ) -> EvaluationRow:
        values: dict[str, float] = {}
        for name in (one.name for one in self.metrics.of_pictures):
            found = [row.values[name] for row in pictures if name in row.values]
            if found:
                values[name] = float(np.mean(found))
        for metric in self.metrics.of_sets:
            try:
                originals = self._features_of_originals(metric)
                if len(originals):
                    results = np.concatenate(features[metric.features])
                    values[metric.name] = metric.compare(results, originals)
            except NotMeasurable as error:
                self._missed.setdefault(metric.name, {}).setdefault("", str(error))
        return EvaluationRow(
            method=method.name,
            scale=self.scale,
            steps=method.steps,
            psnr=values[PSNR],
            ssim=values[SSIM],
            seconds=float(np.mean([row.seconds for row in pictures])),
            parameters=method.cost.parameters if method.cost else None,
            gflop=method.cost.gflop if method.cost else None,
            photos=len(pictures),
            values=values,
        )

    def _features_of_originals(self, metric: SetMetric) -> np.ndarray:
        if metric.features not in self._of_originals:
            found = [
                one
                for photo in self.photos
                for one in self._features(metric.features, photo, photo.original)
            ]
            self._of_originals[metric.features] = np.concatenate(found) if found else np.empty(0)
        return self._of_originals[metric.features]

    @property
    def notes(self) -> list[str]:
        """On every metric that lacks values: a photo, why, and how many more; and what was wrong
        with results."""
        found = []
        for name, photos in self._missed.items():
            photo, why = next(iter(photos.items()))
            more = f", and {len(photos) - 1} more" if len(photos) > 1 else ""
            at = f"{photo}: " if photo else ""
            found.append(f"{name} at x{self.scale:g}: {at}{why}{more}")
        return [*found, *self._of_methods]

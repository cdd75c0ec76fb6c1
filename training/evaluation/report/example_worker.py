"""Makes the pictures of a report on another machine: nothing but numbers was kept of what was
measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datagen.degradation.settings import DegradationSettings
from training.evaluation.evaluate import baseline_methods
from training.evaluation.measure import Method, NoResult
from training.evaluation.photo_list import PhotoFile
from training.evaluation.photos import read_photos
from training.evaluation.report.examples import COUNT, Example, chosen, example, shown
from training.evaluation.scores import MethodKey
from training.evaluation.variants import Variant
from training.run_dir.records import PictureRow
from training.settings.evaluation import EvaluationSettings


@dataclass(frozen=True)
class ExampleTask:
    """The photos of a scale that are shown."""

    path: str
    """Names the task; nothing is written."""
    photos: tuple[PhotoFile, ...]
    why: tuple[str, ...]
    """They are shown."""
    rows: tuple[PictureRow, ...]
    """All of the scale."""


@dataclass(frozen=True)
class ExampleWorker:
    """Restores them once more, model by model, as not all of them may fit into memory."""

    settings: EvaluationSettings
    degradation: DegradationSettings
    variants: tuple[Variant, ...]

    def __call__(self, task: ExampleTask) -> list[Example]:
        scale, keys = task.photos[0].scale, shown(task.rows)
        photos = list(
            read_photos(task.photos, self.settings, self.degradation, on_left_out=lambda _: None)
        )
        made: list[dict[MethodKey, np.ndarray]] = [{} for _ in photos]

        def restore(methods: list[Method]) -> None:
            for method in methods:
                for photo, results in zip(photos, made, strict=True):
                    try:
                        results[method.name, method.steps] = method.make(photo).picture
                    except NoResult:
                        continue

        restore([one for one in baseline_methods(self.settings, scale) if (one.name, 0) in keys])
        for variant in self.variants:
            steps = sorted(steps for name, steps in keys if name == variant.name)
            if steps:
                upscaler = variant.load(self.settings, same_everywhere=True)
                restore(variant.methods(upscaler, steps))
        return [
            example(photo, scale, why, results, task.rows)
            for photo, why, results in zip(photos, task.why, made, strict=True)
        ]


def example_tasks(rows: tuple[PictureRow, ...], photos: tuple[PhotoFile, ...]) -> list[ExampleTask]:
    """One for each scale, with the photos that are to be shown."""
    scales = list(dict.fromkeys(row.scale for row in rows))
    tasks = []
    for scale in scales:
        here = tuple(row for row in rows if row.scale == scale)
        files = {one.name: one for one in photos if one.scale == scale}
        named = chosen(here, count=max(1, COUNT // len(scales)))
        if not named:
            continue
        found = tuple(files[name] for _, name in named)
        tasks.append(ExampleTask(f"pictures x{scale:g}", found, tuple(w for w, _ in named), here))
    return tasks

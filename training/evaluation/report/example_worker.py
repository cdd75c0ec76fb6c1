"""Makes the pictures of a benchmark's report on another machine, as a file: nothing but numbers was
kept of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datagen.degradation.settings import DegradationSettings
from datagen.io import storage
from datagen.records import FrozenModel, UnreadableRecord, read_record, to_compact_json
from training.evaluation.benchmark import MEASURED, Plan, content_digest
from training.evaluation.evaluate import baseline_methods
from training.evaluation.measure import Method, NoResult
from training.evaluation.photo_list import PhotoFile
from training.evaluation.photos import read_photos
from training.evaluation.report.examples import COUNT, Example, chosen, example, shown
from training.evaluation.scores import MethodKey
from training.evaluation.variants import Variant
from training.run_dir.records import PictureRow
from training.settings.evaluation import EvaluationSettings

_FORMAT = 1
"""Of the pictures: those of another one are drawn again."""


class DrawnRecord(FrozenModel):
    """The file of a scale's pictures."""

    examples: tuple[Example, ...]


def read_examples(path: str) -> tuple[Example, ...] | None:
    """The pictures of a scale; None where they are not drawn yet, or damaged."""
    try:
        record = read_record(path, DrawnRecord, remedy="draw it again")
    except UnreadableRecord:
        return None
    return None if record is None else record.examples


@dataclass(frozen=True)
class ExampleTask:
    """The photos of a scale that are shown."""

    path: str
    """Of its record; the name is a digest of all that decides what is in it."""
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

    def __call__(self, task: ExampleTask) -> None:
        """Draws them, and writes them.

        Raises:
            FlowmapsrError: there is no such model, or the file cannot be written.
        """
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
        examples = tuple(
            example(photo, scale, why, results, task.rows)
            for photo, why, results in zip(photos, task.why, made, strict=True)
        )
        storage.write_bytes(task.path, to_compact_json(DrawnRecord(examples=examples)))


def example_tasks(plan: Plan, rows: Sequence[PictureRow]) -> list[ExampleTask]:
    """One for each scale, with the photos that are to be shown; none without a report."""
    scales = list(dict.fromkeys(row.scale for row in rows)) if plan.recipe.report else []
    tasks = []
    for scale in scales:
        here = tuple(row for row in rows if row.scale == scale)
        files = {one.name: one for one in plan.given.at(scale)}
        named = chosen(here, count=max(1, COUNT // len(scales)))
        if named:
            path = _path(plan, scale, here, named)
            photos = tuple(files[name] for _, name in named)
            tasks.append(ExampleTask(path, photos, tuple(why for why, _ in named), here))
    return tasks


def _path(
    plan: Plan, scale: float, rows: Sequence[PictureRow], named: Sequence[tuple[str, str]]
) -> str:
    """The chunks' names say all of models, knobs, settings and photos."""
    content = {
        "format": _FORMAT,
        "chunks": [one.name for one in plan.chunks if one.photos[0].scale == scale],
        "rows": [row.model_dump(mode="json") for row in rows],
        "shown": [named, sorted(shown(rows))],
    }
    name = f"pictures-{content_digest(content)[:32]}.json"
    return storage.join(plan.recipe.output, MEASURED, name)

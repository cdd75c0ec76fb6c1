"""A model or run folder to a table: held-out photos restored by bicubic and in each number of
steps, at each scale, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from datagen.errors import FlowmapsrError
from training.evaluation.baselines import baseline_method, write_lq
from training.evaluation.cost import cost_of
from training.evaluation.measure import Method
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.photo_list import PhotoList, list_photos, told
from training.evaluation.photos import DegradedPhoto, read_photos
from training.evaluation.scores import score
from training.inference.upscaler import Upscaler
from training.run_dir.records import Evaluation, PictureRow
from training.settings.evaluation import Baseline, EvaluationSettings, Interpolation
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of

OnScale = Callable[[float, Sequence[DegradedPhoto], Sequence[Method], Sequence[PictureRow]], None]


def evaluate(
    model: str,
    settings: EvaluationSettings,
    *,
    given: PhotoList | None = None,
    lq_folder: str | None = None,
    on_scale: OnScale | None = None,
    system_of: SystemOf = default_system_of,
) -> Evaluation:
    """Bicubic, other baselines and every number of steps, at every scale. What cannot be measured
    is told in the notes.

    Args:
        given: what `list_photos` found; None lists them now.
        lq_folder: where the LQ pictures are written.
        on_scale: gets the photos of each scale, the methods and the rows, for pictures of them.

    Raises:
        FlowmapsrError: no model, no photo or no pictures of a baseline there, or no photo that can
            be evaluated.
    """
    upscaler = Upscaler.from_pretrained(
        model,
        lora_scale=settings.lora_scale,
        guidance=settings.guidance,
        precision=settings.precision,
        seed=settings.seed,
        system_of=system_of,
    )
    metrics = find_metrics(
        settings.metrics, settings.conventions(), weights=settings.metric_weights
    )
    ours = [
        Method(upscaler.method, n, partial(_restored, upscaler, n), cost_of(upscaler, n))
        for n in settings.steps
    ]
    for one in settings.baselines:
        if one.name == upscaler.method:
            raise FlowmapsrError(f"baseline {one.name} has the name of the model; choose another")
    given = given or list_photos(settings)
    notes, scores, faults = list(metrics.left_out), [], list(given.left_out)
    for scale in given.scales:
        files, chain = given.at(scale), upscaler.config.degradation
        photos = list(read_photos(files, settings, chain, on_left_out=faults.append))
        faults += [one for photo in photos for one in photo.remarks]
        if not photos:
            continue
        if lq_folder is not None:
            write_lq(lq_folder, scale, photos)
        others = [baseline_method(one, scale) for one in _with_bicubic(settings.baselines)]
        methods = [*others, *ours]
        at_scale = score(photos, methods, scale, metrics)
        if on_scale is not None:
            on_scale(scale, photos, methods, at_scale.pictures)
        scores.append(at_scale)
        notes += at_scale.notes
    if not scores:
        raise FlowmapsrError(f"{settings.place}: no photo to evaluate; {'; '.join(told(faults))}")
    return Evaluation(
        rows=tuple(row for each in scores for row in each.rows),
        pictures=tuple(row for each in scores for row in each.pictures),
        seconds=tuple(one for each in scores for one in each.seconds),
        notes=(*told(faults), *notes),
        better=metrics.better(),
    )


def _with_bicubic(baselines: Sequence[Baseline]) -> list[Baseline]:
    """Bicubic first, which every evaluation has."""
    first: Baseline = Interpolation(kind="bicubic")
    return [first, *(one for one in baselines if one != first)]


def _restored(upscaler: Upscaler, steps: int, photo: DegradedPhoto) -> np.ndarray:
    return upscaler.restore(upscaler.enlarge(photo.small, photo.size), steps=steps)

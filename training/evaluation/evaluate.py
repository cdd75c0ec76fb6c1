"""Models to a table, here and now: held-out photos restored by bicubic, other baselines and each
number of steps of each model, at each scale, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datagen.errors import FlowmapsrError
from training.evaluation.baselines import baseline_method, write_lq
from training.evaluation.hardware import hardware
from training.evaluation.kept_pictures import KeptPictures
from training.evaluation.measure import Method
from training.evaluation.metrics.catalog import metrics_of
from training.evaluation.photo_list import PhotoList, list_photos, told
from training.evaluation.photos import DegradedPhoto, read_photos
from training.evaluation.scores import score
from training.evaluation.variants import costs_of, find_variants
from training.run_dir.records import Evaluation, PictureRow
from training.settings.benchmark import BenchmarkModel
from training.settings.evaluation import Baseline, EvaluationSettings, Interpolation
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of

OnScale = Callable[[float, Sequence[DegradedPhoto], Sequence[Method], Sequence[PictureRow]], None]


def evaluate(
    models: str | Sequence[BenchmarkModel],
    settings: EvaluationSettings,
    *,
    given: PhotoList | None = None,
    lq_folder: str | None = None,
    on_scale: OnScale | None = None,
    system_of: SystemOf = default_system_of,
) -> Evaluation:
    """Bicubic, other baselines and every number of steps of each model, at every scale. What cannot
    be measured is told in the notes.

    Args:
        models: the folder of one, or several, of which the first one's chain degrades the photos.
        given: what `list_photos` found; None lists them now.
        lq_folder: where the LQ pictures are written.
        on_scale: gets the photos of each scale, the methods and the rows, for pictures of them.

    Raises:
        FlowmapsrError: no model, no photo or no pictures of a baseline there, or no photo that can
            be evaluated.
    """
    if isinstance(models, str):
        models = (BenchmarkModel(folder=models),)
    variants = find_variants(models, settings, system_of=system_of)
    metrics = metrics_of(settings)
    ours: list[Method] = []
    for one in variants.each:
        upscaler = one.load(settings, system_of=system_of)
        ours += one.methods(upscaler, settings.steps, costs_of(upscaler, settings.steps))
    given = given or list_photos(settings)
    notes, scores, faults = list(metrics.left_out), [], list(given.left_out)
    for scale in given.scales:
        files = given.at(scale)
        found = read_photos(files, settings, variants.degradation, on_left_out=faults.append)
        photos = list(found)
        faults += [one for photo in photos for one in photo.remarks]
        if not photos:
            continue
        if lq_folder is not None:
            write_lq(lq_folder, scale, photos)
        methods = [*baseline_methods(settings, scale), *ours]
        if on_scale is not None:
            methods = list(map(KeptPictures().of, methods))
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
        models=variants.models,
        hardware=hardware(),
        notes=(*variants.notes, *told(faults), *notes),
        better=metrics.better(),
    )


def baseline_methods(settings: EvaluationSettings, scale: float) -> list[Method]:
    """Bicubic first, which every evaluation has."""
    first: Baseline = Interpolation(kind="bicubic")
    others = (one for one in settings.baselines if one != first)
    return [baseline_method(one, scale) for one in (first, *others)]

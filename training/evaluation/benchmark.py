"""A benchmark as a plan of chunks, and as the evaluation that its files hold.

A plain `for` loop over `plan.pending()` makes it; a cluster only shares that loop. What comes out
does not depend on the number of workers, nor on how photos were put into chunks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.evaluation.baselines import require_own_lq
from training.evaluation.chunks import NOT_SHARED, Chunk, ChunkRecord, ChunkWorker, read_chunk
from training.evaluation.cost import Cost
from training.evaluation.measure import Measurement
from training.evaluation.metrics.catalog import metrics_of
from training.evaluation.metrics.metric import Metrics
from training.evaluation.photo_list import PhotoFile, PhotoList, list_photos, told
from training.evaluation.scores import MethodKey, summarize
from training.evaluation.speed import SpeedTask
from training.evaluation.variants import Variant, Variants, find_variants
from training.run_dir.records import Evaluation
from training.settings.benchmark import BenchmarkRecipe
from training.settings.evaluation import SOURCES, Baseline, EvaluationSettings
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of
from training.weights.model_folder import digest_of_files

MEASURED = "measured"
"""Folder of the chunks below an output."""
_FORMAT = 1
"""Of what a chunk's digest is of: chunks of another one are measured again."""


@dataclass(frozen=True)
class Plan:
    """All that is measured of photos."""

    recipe: BenchmarkRecipe
    settings: EvaluationSettings
    variants: Variants
    given: PhotoList
    metrics: Metrics
    digests: dict[str, str]
    """Of each model's files, by its folder."""
    chunks: tuple[Chunk, ...]
    """Baselines first, then model by model, as a worker keeps the last one loaded."""

    def pending(self) -> list[Chunk]:
        """The chunks that are not made yet."""
        return [one for one in self.chunks if read_chunk(one.path) is None]

    def worker(self) -> ChunkWorker:
        lq = storage.join(self.recipe.output, "lq")
        return ChunkWorker(self.settings, self.variants.degradation, lq)


def plan_benchmark(recipe: BenchmarkRecipe, *, system_of: SystemOf = default_system_of) -> Plan:
    """Lists photos, models and metrics.

    Raises:
        FlowmapsrError: no model, no photo or no pictures of a baseline there, or two photos that
            differ in their suffix only.
    """
    settings = recipe.evaluation()
    variants = find_variants(
        recipe.models,
        settings.model_copy(update={"lora_scale": recipe.lora_scale, "guidance": recipe.guidance}),
        lora_scales=recipe.lora_scales,
        guidances=recipe.guidances,
        system_of=system_of,
    )
    given = list_photos(settings) if recipe.measures_photos else PhotoList(())
    for scale in given.scales:
        require_own_lq([photo.name for photo in given.at(scale)])
    metrics = metrics_of(settings)
    folders = dict.fromkeys(each.folder for each in variants.each)
    digests = {folder: digest_of_files(Path(folder)) for folder in folders}
    chunks = tuple(_chunks(recipe, settings, variants, given, metrics, digests))
    return Plan(recipe, settings, variants, given, metrics, digests, chunks)


def _chunks(
    recipe: BenchmarkRecipe,
    settings: EvaluationSettings,
    variants: Variants,
    given: PhotoList,
    metrics: Metrics,
    digests: dict[str, str],
) -> Iterator[Chunk]:
    shared = {
        "format": _FORMAT,
        "settings": settings.content() | dict.fromkeys(("baselines", "scales", *SOURCES)),
        "metrics": sorted(metrics.better()),
        "degradation": variants.degradation.model_dump(mode="json"),
    }
    for variant in (None, *variants.each):
        for scale in given.scales:
            whose = _baselines(settings, scale) if variant is None else _model(variant, digests)
            for photos in _in_parts(given.at(scale), recipe.photos_per_chunk):
                content = {**shared, **whose, "photos": [_photo(one) for one in photos]}
                digest = content_digest(content)
                path = storage.join(recipe.output, MEASURED, f"{digest[:32]}.json")
                yield Chunk(path, variant, photos)


def _model(variant: Variant, digests: dict[str, str]) -> dict[str, Any]:
    return {
        "name": variant.name,
        "model": digests[variant.folder],
        "knobs": [variant.lora_scale, variant.guidance],
    }


def _baselines(settings: EvaluationSettings, scale: float) -> dict[str, Any]:
    """With the files behind them as they are now."""
    return {
        "scale": scale,
        "baselines": [one.model_dump(mode="json") for one in settings.baselines],
        "files": [list(_files(one)) for one in settings.baselines],
    }


def _files(baseline: Baseline) -> Iterator[tuple[str, int, str]]:
    values = [one for one in baseline.model_dump().values() if isinstance(one, str) and "/" in one]
    weights = [f"{one.removesuffix('.param')}.bin" for one in values if one.endswith(".param")]
    for value in (*values, *weights):
        if storage.exists(value):
            found = storage.scan(value)
            yield from sorted((one.uri, one.bytes, one.stamp) for one in found)


def _photo(photo: PhotoFile) -> list[Any]:
    files = (photo.file, *([photo.lq] if photo.lq is not None else []))
    return [photo.name, photo.scale, *((one.bytes, one.stamp) for one in files)]


def content_digest(content: dict[str, Any]) -> str:
    """SHA-256 of all that decides what a file of a benchmark holds."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _in_parts(photos: Sequence[PhotoFile], size: int) -> Iterator[tuple[PhotoFile, ...]]:
    rest = iter(photos)
    while part := tuple(islice(rest, size)):
        yield part


def speed_tasks(plan: Plan) -> list[SpeedTask]:
    """The models that are timed, each in all sides and numbers of steps; none where nothing is."""
    timing = plan.recipe.timing
    if timing is None:
        return []
    tasks = []
    for variant in plan.variants.each:
        content = {
            **_model(variant, plan.digests),
            "timing": timing.model_dump(mode="json"),
            "steps": plan.settings.steps,
            "precision": plan.settings.precision,
        }
        name = f"seconds-{content_digest(content)[:32]}.json"
        tasks.append(SpeedTask(storage.join(plan.recipe.output, MEASURED, name), variant))
    return tasks


def gathered(plan: Plan) -> Evaluation:
    """The evaluation that the chunks hold, once all of them are made.

    Raises:
        FlowmapsrError: one of them is missing, or no photo could be evaluated.
    """
    records, found = [], []
    costs: dict[MethodKey, Cost] = {}
    hardware: set[str] = set()
    for chunk in plan.chunks:
        one = read_chunk(chunk.path)
        if one is None:
            raise FlowmapsrError(f"{chunk.path} {NOT_SHARED}")
        records.append(one[0])
        found += one[1]
        if chunk.variant is not None:
            hardware.add(one[0].hardware)
            costs |= {(chunk.variant.name, n): cost for n, cost in one[0].costs.items()}
    faults = [*plan.given.left_out, *(fault for one in records for fault in one.faults)]
    scores = [
        summarize(in_order(found, plan.given.at(scale), scale), scale, plan.metrics, costs)
        for scale in plan.given.scales
    ]
    if plan.chunks and not any(each.rows for each in scores):
        place = plan.settings.place
        raise FlowmapsrError(f"{place}: no photo to evaluate; {'; '.join(told(faults))}")
    return Evaluation(
        rows=tuple(row for each in scores for row in each.rows),
        pictures=tuple(row for each in scores for row in each.pictures),
        seconds=tuple(one for each in scores for one in each.seconds),
        models=plan.variants.models,
        hardware=", ".join(sorted(hardware)),
        notes=(
            *plan.variants.notes,
            *told(faults),
            *_left_out(plan.metrics, records),
            *(note for each in scores for note in each.notes),
        ),
        better=plan.metrics.better(),
    )


def _left_out(metrics: Metrics, records: Sequence[ChunkRecord]) -> list[str]:
    everywhere = (*metrics.left_out, *(line for one in records for line in one.left_out))
    return list(dict.fromkeys(everywhere))


def in_order(
    found: Sequence[Measurement], photos: Sequence[PhotoFile], scale: float
) -> list[Measurement]:
    """Those of a scale method by method, photo by photo, however they came."""
    place = {photo.name: number for number, photo in enumerate(photos)}
    here = [one for one in found if one.measured.scale == scale]
    methods: dict[MethodKey, int] = {}
    for one in here:
        methods.setdefault((one.measured.method, one.measured.steps), len(methods))
    return sorted(
        here,
        key=lambda one: (
            methods[one.measured.method, one.measured.steps],
            place[one.measured.photo],
        ),
    )

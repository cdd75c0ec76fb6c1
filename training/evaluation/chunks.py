"""A chunk of an evaluation's photos, measured with one model or with all baselines, as a file:
parts of a benchmark that any machine can make, and that are made once.

`<chunk>.safetensors` holds the features for metrics of sets, if there are any; `<chunk>.json`,
written after it, is the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import safetensors.numpy

from datagen.degradation.settings import DegradationSettings
from datagen.io import storage
from datagen.photos.source_file import Rejection
from datagen.records import FrozenModel, UnreadableRecord, read_record, to_compact_json
from training.evaluation.baselines import write_lq
from training.evaluation.cost import Cost
from training.evaluation.evaluate import baseline_methods
from training.evaluation.hardware import hardware
from training.evaluation.measure import (
    Measured,
    Measurement,
    Method,
    measure_all,
    measure_original,
)
from training.evaluation.metrics.catalog import metrics_of
from training.evaluation.metrics.metric import Metrics
from training.evaluation.photo_list import PhotoFile
from training.evaluation.photos import read_photos
from training.evaluation.variants import Variant, costs_of
from training.inference.upscaler import Upscaler
from training.settings.evaluation import EvaluationSettings

NOT_SHARED = (
    "is missing or damaged: the output must be a folder that all nodes of the Ray cluster share, "
    "or in s3://; run the same command again"
)
"""Said of a file that a worker has written, and that is not here."""


@dataclass(frozen=True)
class Chunk:
    """Some photos of one scale, and who restores them."""

    path: str
    """Where its record is written; the name is a digest of all that decides what is in it."""
    variant: Variant | None
    """A model; None for all baselines, and the photos themselves."""
    photos: tuple[PhotoFile, ...]

    @property
    def name(self) -> str:
        """Of its record, without the folder."""
        return self.path.rpartition("/")[2]

    @property
    def results(self) -> int:
        """How many photos are restored; those of baselines cost next to nothing."""
        return len(self.photos) if self.variant is not None else 0


class ChunkRecord(FrozenModel):
    """`<chunk>.json`."""

    measured: tuple[Measured, ...]
    """Method by method, photo by photo."""
    faults: tuple[Rejection, ...] = ()
    """Of photos, told by the chunk of the baselines."""
    costs: dict[int, Cost] = {}
    """By number of steps."""
    left_out: tuple[str, ...] = ()
    """Metrics that could not be measured there."""
    hardware: str = ""


@dataclass
class ChunkWorker:
    """Measures chunks; keeps the model of the last one loaded."""

    settings: EvaluationSettings
    degradation: DegradationSettings
    lq_folder: str | None = None
    """Where the LQ pictures are written."""
    _metrics: Metrics | None = None
    _loaded: tuple[Variant, Upscaler] | None = None
    _costs: dict[Variant, dict[int, Cost]] = field(default_factory=dict)

    def __call__(self, chunk: Chunk) -> int:
        """Measures and writes a chunk; how many results it has.

        Raises:
            FlowmapsrError: no model or baseline there, or a file cannot be written.
        """
        scale, metrics = chunk.photos[0].scale, self.metrics
        faults: list[Rejection] = []
        photos = list(
            read_photos(chunk.photos, self.settings, self.degradation, on_left_out=faults.append)
        )
        if chunk.variant is None:
            faults += [one for photo in photos for one in photo.remarks]
            if self.lq_folder is not None:
                write_lq(self.lq_folder, scale, photos)
        methods = self._methods(chunk.variant, scale)
        originals = photos if chunk.variant is None and metrics.of_sets else ()
        found = [
            *measure_all(methods, photos, scale, metrics),
            *(measure_original(photo, scale, metrics) for photo in originals),
        ]
        record = ChunkRecord(
            measured=tuple(one.measured for one in found),
            faults=tuple(faults) if chunk.variant is None else (),
            costs={one.steps: one.cost for one in methods if one.cost is not None},
            left_out=metrics.left_out,
            hardware=hardware(),
        )
        write_chunk(chunk.path, record, found)
        return len(found)

    @property
    def metrics(self) -> Metrics:
        if self._metrics is None:
            self._metrics = metrics_of(self.settings)
        return self._metrics

    def _methods(self, variant: Variant | None, scale: float) -> list[Method]:
        if variant is None:
            return baseline_methods(self.settings, scale)
        if self._loaded is None or self._loaded[0] != variant:
            self._loaded = None  # before the next one is loaded
            self._loaded = variant, variant.load(self.settings, same_everywhere=True)
        upscaler = self._loaded[1]
        if variant not in self._costs:
            self._costs[variant] = costs_of(upscaler, self.settings.steps)
        return variant.methods(upscaler, self.settings.steps, self._costs[variant])


def write_chunk(path: str, record: ChunkRecord, found: Sequence[Measurement]) -> None:
    """
    Raises:
        FlowmapsrError: it cannot be written.
    """
    features = {
        f"{number}.{name}": np.ascontiguousarray(array)
        for number, one in enumerate(found)
        for name, array in one.features.items()
    }
    if features:
        storage.write_bytes(_features_path(path), safetensors.numpy.save(features))
    storage.write_bytes(path, to_compact_json(record))


def read_chunk(path: str) -> tuple[ChunkRecord, list[Measurement]] | None:
    """What a chunk holds; None where it is not made, or damaged."""
    try:
        record = read_record(path, ChunkRecord, remedy="measure it again")
        if record is None:
            return None
        features: list[dict[str, np.ndarray]] = [{} for _ in record.measured]
        if storage.exists(_features_path(path)):
            for key, array in safetensors.numpy.load(
                storage.read_bytes(_features_path(path))
            ).items():
                number, _, name = key.partition(".")
                features[int(number)][name] = array
    except (UnreadableRecord, safetensors.SafetensorError, IndexError):
        return None
    return record, [Measurement(*pair) for pair in zip(record.measured, features, strict=True)]


def _features_path(path: str) -> str:
    return path.removesuffix(".json") + ".safetensors"

"""The photos that a report shows: those restored worst, and those where methods differ most."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from datagen.records import FrozenModel
from training.evaluation.main_metric import MainMetric, main_metric
from training.evaluation.measure import Method
from training.evaluation.photos import DegradedPhoto
from training.evaluation.report.tables import method_label
from training.evaluation.scores import MethodKey
from training.run_dir.records import PictureRow

COUNT = 10
"""Photos of either kind, at most, over all scales."""
CROP = 256
"""Side of the shown part of a photo, pixels."""
MOST_METHODS = 8
"""Above so many methods each model is shown in its best number of steps alone."""


class Panel(FrozenModel):
    """One method's crop of a photo."""

    label: str
    value: str
    """PSNR of the whole photo, or NIQE; empty for LQ and original."""
    uri: str
    """A `data:` URI of its pixels, lossless."""


class Example(FrozenModel):
    """A photo that the report shows."""

    photo: str
    scale: float
    why: str
    panels: tuple[Panel, ...]
    """LQ enlarged by repetition, each method, original if there is one."""
    shown: Panel
    """Of the method that the photo was chosen by."""


@dataclass
class Examples:
    """Gathers them scale by scale, while an evaluation has its photos and methods at hand."""

    scales: int
    """How many there will be."""
    found: list[Example] = field(default_factory=list)

    def add(
        self,
        scale: float,
        photos: Sequence[DegradedPhoto],
        methods: Sequence[Method],
        rows: Sequence[PictureRow],
    ) -> None:
        """Takes what is shown of this scale; methods may have kept it, or restore it once more."""
        by_name = {photo.name: photo for photo in photos}
        for why, name in chosen(rows, count=max(1, COUNT // self.scales)):
            photo = by_name[name]
            of_photo = {(row.method, row.steps) for row in rows if row.photo == name}
            results = {
                (one.name, one.steps): one.make(photo).picture
                for one in methods
                if (one.name, one.steps) in of_photo & shown(rows)
            }
            self.found.append(example(photo, scale, why, results, rows))


def shown(rows: Sequence[PictureRow]) -> set[MethodKey]:
    """The methods whose pictures are shown: all, or the best of each model."""
    keys = dict.fromkeys((row.method, row.steps) for row in rows)
    if len(keys) <= MOST_METHODS:
        return set(keys)
    names = dict.fromkeys(name for name, _ in keys)
    return {_best(rows, [key for key in keys if key[0] == name]) for name in names}


def chosen(rows: Sequence[PictureRow], *, count: int) -> list[tuple[str, str]]:
    """Why and which: photos by the judged method's PSNR, or NIQE, the worst first, then those where
    it differs most from the first method's; none twice."""
    metric = _metric(rows)
    if metric is None:
        return []
    baseline = rows[0].method
    others, ours = _values(rows, (baseline, rows[0].steps)), _values(rows, judged(rows))
    worst = sorted(ours, key=lambda photo: (metric.rank(ours[photo]), photo))[:count]
    gains = {
        photo: ours[photo] - others[photo] for photo in ours.keys() & others if photo not in worst
    }
    most = sorted(gains, key=lambda photo: (-abs(gains[photo]), photo))[:count]
    return [
        *((f"restored worst: {metric.told(ours[photo])}", photo) for photo in worst),
        *((f"{metric.told_difference(gains[photo])} over {baseline}", photo) for photo in most),
    ]


def judged(rows: Sequence[PictureRow]) -> MethodKey:
    """Method and steps of the models' best mean PSNR, or NIQE."""
    return _best(rows, list(dict.fromkeys((one.method, one.steps) for one in rows if one.steps)))


def _best(rows: Sequence[PictureRow], keys: Sequence[MethodKey]) -> MethodKey:
    metric = _metric(rows)

    def rank(key: MethodKey) -> float:
        values = list(_values(rows, key).values())
        return metric.rank(float(np.mean(values))) if metric and values else -math.inf

    return max(keys, key=rank)


def _metric(rows: Sequence[PictureRow]) -> MainMetric | None:
    return main_metric(name for row in rows for name in row.values)


def _values(rows: Sequence[PictureRow], key: MethodKey) -> dict[str, float]:
    """Of the main metric, by photo."""
    metric = _metric(rows)
    return {
        row.photo: row.values[metric.name]
        for row in rows
        if (row.method, row.steps) == key and metric and metric.name in row.values
    }


def example(
    photo: DegradedPhoto,
    scale: float,
    why: str,
    results: Mapping[MethodKey, np.ndarray],
    rows: Sequence[PictureRow],
) -> Example:
    """A photo with the results of some methods, the judged one among them."""
    best = list(results).index(judged(rows))
    first = next(iter(results.values()))
    top, left = _farthest(
        results[judged(rows)], first if photo.original is None else photo.original
    )
    lq = cv2.resize(photo.small, photo.size, interpolation=cv2.INTER_NEAREST)
    named = [
        ("LQ", "", lq),
        *((method_label(*key), _told(rows, key, photo), one) for key, one in results.items()),
        *([] if photo.original is None else [("original", "", photo.original)]),
    ]
    panels = [
        Panel(label=label, value=value, uri=data_uri(image[top : top + CROP, left : left + CROP]))
        for label, value, image in named
    ]
    return Example(
        photo=photo.name, scale=scale, why=why, panels=tuple(panels), shown=panels[1 + best]
    )


def _told(rows: Sequence[PictureRow], key: MethodKey, photo: DegradedPhoto) -> str:
    metric, value = _metric(rows), _values(rows, key).get(photo.name)
    return "" if metric is None or value is None else metric.told(value)


def _farthest(result: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Top and left of the crop where a result is farthest from the original, or from the first
    method's where there is none."""
    error = np.square(result.astype(np.float32) - other).mean(axis=2)
    height, width = (min(CROP, side) for side in error.shape)
    means = cv2.blur(error, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = means[: error.shape[0] - height + 1, : error.shape[1] - width + 1]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left)


def data_uri(image: np.ndarray) -> str:
    """RGB uint8 (H, W, 3) as lossless WebP inside an address."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()

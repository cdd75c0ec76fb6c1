"""The photos that a report shows: those restored worst, and those where methods differ most."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from training.evaluation.measure import Method
from training.evaluation.photos import DegradedPhoto
from training.evaluation.report.tables import method_label
from training.run_dir.records import PSNR, PictureRow

COUNT = 10
"""Photos of either kind, at most, over all scales."""
CROP = 256
"""Side of the shown part of a photo, pixels."""


@dataclass(frozen=True)
class Panel:
    """One method's crop of a photo."""

    label: str
    psnr: float | None
    """Of the whole photo, dB; None for the original."""
    uri: str
    """A `data:` URI of its pixels, lossless."""


@dataclass(frozen=True)
class Example:
    """A photo that the report shows."""

    photo: str
    scale: float
    why: str
    panels: tuple[Panel, ...]
    """LQ enlarged by repetition, each method, original."""
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
        """Restores once more what is shown of this scale: nothing else was kept."""
        by_name = {photo.name: photo for photo in photos}
        for why, name in chosen(rows, count=max(1, COUNT // self.scales)):
            self.found.append(_example(by_name[name], scale, why, methods, rows))


def chosen(rows: Sequence[PictureRow], *, count: int) -> list[tuple[str, str]]:
    """Why and which: photos by the judged method's PSNR, lowest first, then those where it differs
    most from the first method's; none twice."""
    baseline = rows[0].method
    others, ours = _psnr(rows, (baseline, rows[0].steps)), _psnr(rows, judged(rows))
    worst = sorted(ours, key=lambda photo: (ours[photo], photo))[:count]
    gains = {photo: ours[photo] - others[photo] for photo in ours if photo not in worst}
    most = sorted(gains, key=lambda photo: (-abs(gains[photo]), photo))[:count]
    return [
        *((f"restored worst: {ours[photo]:.2f} dB", photo) for photo in worst),
        *((f"{gains[photo]:+.2f} dB over {baseline}", photo) for photo in most),
    ]


def judged(rows: Sequence[PictureRow]) -> tuple[str, int]:
    """Method and steps of the model's highest mean PSNR."""
    keys = dict.fromkeys((row.method, row.steps) for row in rows if row.steps)
    return max(keys, key=lambda key: np.mean(list(_psnr(rows, key).values())))


def _psnr(rows: Sequence[PictureRow], key: tuple[str, int]) -> dict[str, float]:
    return {row.photo: row.values[PSNR] for row in rows if (row.method, row.steps) == key}


def _example(
    photo: DegradedPhoto,
    scale: float,
    why: str,
    methods: Sequence[Method],
    rows: Sequence[PictureRow],
) -> Example:
    psnr = {(row.method, row.steps): row.values[PSNR] for row in rows if row.photo == photo.name}
    methods = [one for one in methods if (one.name, one.steps) in psnr]
    results = [method.make(photo).picture for method in methods]
    best = [(one.name, one.steps) for one in methods].index(judged(rows))
    top, left = _farthest(results[best], photo.original)
    lq = cv2.resize(photo.small, photo.size, interpolation=cv2.INTER_NEAREST)
    named = [
        ("LQ", None, lq),
        *(
            (method_label(one.name, one.steps), psnr[one.name, one.steps], result)
            for one, result in zip(methods, results, strict=True)
        ),
        ("original", None, photo.original),
    ]
    panels = [
        Panel(label, value, data_uri(image[top : top + CROP, left : left + CROP]))
        for label, value, image in named
    ]
    return Example(photo.name, scale, why, tuple(panels), panels[1 + best])


def _farthest(result: np.ndarray, original: np.ndarray) -> tuple[int, int]:
    """Top and left of the crop where a result is farthest from the original."""
    error = np.square(result.astype(np.float32) - original).mean(axis=2)
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

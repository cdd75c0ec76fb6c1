"""Held-out photos, degraded by the model's own chain at fixed scales, restored and compared with
the originals.

The degradation of a photo depends only on seed, photo and scale,
so every model and every number of steps sees the same LQ image.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from datagen.degradation.apply import degrade_small
from datagen.degradation.draw import draw_degradation
from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.photos.decode import ImageRejected, decode_photo
from datagen.photos.source_file import read_photo
from datagen.photos.sources import list_sources
from datagen.settings import ImageSettings
from training.data.schedule import seeded
from training.evaluation.metrics import WINDOW, psnr, ssim
from training.inference.levels import bicubic
from training.inference.upscaler import Upscaler
from training.run_dir.records import BICUBIC, EvaluationRow
from training.settings.evaluation import EvaluationSettings
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of


@dataclass(frozen=True)
class DegradedPhoto:
    """An original (RGB uint8, sides cut to multiples of the scale) and its small LQ image."""

    original: np.ndarray
    small: np.ndarray


def degraded_photos(
    settings: EvaluationSettings, degradation: DegradationSettings, scale: float
) -> Iterator[DegradedPhoto]:
    """Every photo of the folder with its LQ image at `scale`, in the order of their names.

    Raises:
        FlowmapsrError: a photo cannot be read, or is smaller than the scale.
    """
    for source in list_sources((settings.photos,)).files:
        data = read_photo(source)
        try:
            photo = decode_photo(data, ImageSettings())
        except ImageRejected as error:
            raise FlowmapsrError(f"{source.uri}: {error}; take it out of the folder") from error
        height, width = (int(side // scale * scale) for side in photo.shape[:2])
        if min(height, width) < WINDOW:
            raise FlowmapsrError(
                f"{source.uri}: {photo.shape[1]}x{photo.shape[0]} is too small to evaluate at "
                f"scale {scale:g}; take it out of the folder or leave this scale out"
            )
        original = np.ascontiguousarray(photo[:height, :width])
        rng = seeded(settings.seed, hashlib.sha256(data).hexdigest(), scale)
        drawn = draw_degradation(degradation, rng, scale=scale)
        yield DegradedPhoto(original, degrade_small(original, drawn))


def evaluate(
    model: str, settings: EvaluationSettings, *, system_of: SystemOf = default_system_of
) -> list[EvaluationRow]:
    """The table of a model or run folder: bicubic and every number of steps, at every scale.

    Raises:
        FlowmapsrError: no model or no photo there.
    """
    upscaler = Upscaler.from_pretrained(
        model,
        lora_scale=settings.lora_scale,
        guidance=settings.guidance,
        precision=settings.precision,
        seed=settings.seed,
        system_of=system_of,
    )
    rows = []
    for scale in settings.scales:
        photos = list(degraded_photos(settings, upscaler.config.degradation, scale))
        rows.append(_row(None, 0, scale, photos))
        rows += [_row(upscaler, steps, scale, photos) for steps in settings.steps]
    return rows


def _row(
    upscaler: Upscaler | None, steps: int, scale: float, photos: list[DegradedPhoto]
) -> EvaluationRow:
    """Means over the photos; without an upscaler the row of bicubic."""
    qualities, seconds = [], []
    for photo in photos:
        height, width = photo.original.shape[:2]
        start = time.perf_counter()
        if upscaler is None:
            result = bicubic(photo.small, (width, height))
        else:
            result = upscaler.restore(upscaler.enlarge(photo.small, (width, height)), steps=steps)
        seconds.append(time.perf_counter() - start)
        qualities.append(quality(photo.original, result))
    return EvaluationRow(
        method=BICUBIC if upscaler is None else upscaler.method,
        scale=scale,
        steps=steps,
        psnr=float(np.mean([one.psnr for one in qualities])),
        ssim=float(np.mean([one.ssim for one in qualities])),
        seconds=float(np.mean(seconds)),
    )


class Quality(NamedTuple):
    """How close a restored photo is to its original."""

    psnr: float
    ssim: float


def quality(original: np.ndarray, result: np.ndarray) -> Quality:
    """Of two images, RGB uint8 (H, W, 3)."""
    both = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None] for image in (original, result)]
    return Quality(float(psnr(*both)), float(ssim(*both)))

"""Held-out photos, degraded by the model's own chain at fixed scales, restored and compared with
the originals.

PSNR and SSIM are scikit-image's. The degradation of a photo depends only on seed, photo and scale,
so every model and every number of steps sees the same LQ image.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from datagen.degradation.apply import degrade_small
from datagen.degradation.draw import draw_degradation
from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.photos.decode import ImageRejected, decode_photo
from datagen.photos.source_file import read_photo
from datagen.photos.sources import list_sources
from datagen.settings import ImageSettings
from training.data.schedule import seeded
from training.inference.upscaler import Upscaler, bicubic
from training.run_dir.records import BICUBIC, EvaluationRow
from training.settings.evaluation import EvaluationSettings
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of

MIN_SIDE = 16
"""Pixels; below it SSIM's window does not fit."""


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
        if min(height, width) < MIN_SIDE:
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
    psnr, ssim, seconds = [], [], []
    for photo in photos:
        height, width = photo.original.shape[:2]
        start = time.perf_counter()
        if upscaler is None:
            result = bicubic(photo.small, (width, height))
        else:
            result = upscaler.restore(upscaler.enlarge(photo.small, (width, height)), steps=steps)
        seconds.append(time.perf_counter() - start)
        psnr.append(peak_signal_noise_ratio(photo.original, result, data_range=255))
        ssim.append(rgb_ssim(photo.original, result))
    return EvaluationRow(
        method=BICUBIC if upscaler is None else upscaler.method,
        scale=scale,
        steps=steps,
        psnr=float(np.mean(psnr)),
        ssim=float(np.mean(ssim)),
        seconds=float(np.mean(seconds)),
    )


def rgb_ssim(original: np.ndarray, result: np.ndarray) -> float:
    """SSIM with the Gaussian window of Wang et al. (2004), mean over the colors."""
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(original, result, channel_axis=2, data_range=255, **window))

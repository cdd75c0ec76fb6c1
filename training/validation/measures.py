"""The metrics that a recipe adds to validation, on each image of a group."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.metrics.metric import Metrics, NotMeasurable, PictureMetric
from training.settings.evaluation import Convention
from training.settings.validation import ValidationSettings

log = logging.getLogger(__name__)

Values = Mapping[str, np.ndarray]
"""By metric, a value for each image; NaN where it has none."""


@dataclass
class Measures:
    """Those that every worker can measure."""

    metrics: tuple[PictureMetric, ...] = ()
    missed: dict[str, str] = field(default_factory=dict)
    """Why an image had no value, by metric."""
    seconds: float = 0.0
    """What they have taken."""

    def of(self, images: Tensor, originals: Tensor) -> Values:
        """Of uint8 images (B, 3, H, W)."""
        if not self.metrics:
            return {}
        start = time.perf_counter()
        pairs = list(zip(_pictures(images), _pictures(originals), strict=True))
        found = {
            one.name: np.array([self._value(one, *pair) for pair in pairs]) for one in self.metrics
        }
        self.seconds += time.perf_counter() - start
        return found

    def _value(self, metric: PictureMetric, image: np.ndarray, original: np.ndarray) -> float:
        try:
            return metric.value(image, original)
        except NotMeasurable as error:
            self.missed.setdefault(metric.name, str(error))
            return math.nan


NO_MEASURES = Measures()


def find_measures(settings: ValidationSettings) -> Measures:
    """Every worker must call it; what one of them cannot measure is left out, with a warning."""
    if not settings.metrics:
        return Measures()
    first = dist.get_rank() == 0
    if first:  # downloads what is missing
        mine = _find(settings)
    dist.barrier()
    if not first:
        mine = _find(settings)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (tuple(mine.better()), mine.left_out))
    if first:
        for line in dict.fromkeys(line for _, left_out in everyone for line in left_out):
            log.warning("validation does not measure %s", line)
    common = set.intersection(*(set(names) for names, _ in everyone))
    return Measures(tuple(one for one in mine.of_pictures if one.name in common))


def _find(settings: ValidationSettings) -> Metrics:
    with torch.random.fork_rng():  # networks are made with random weights first
        found = find_metrics(settings.metrics, Convention(), weights=settings.metric_weights)
    asked = tuple(one for one in found.of_pictures if one.name not in ("psnr_rgb", "ssim_rgb"))
    return Metrics(asked, left_out=found.left_out)


def _pictures(images: Tensor) -> Sequence[np.ndarray]:
    """(B, 3, H, W) -> B times (H, W, 3) in host memory."""
    return list(images.permute(0, 2, 3, 1).cpu().numpy())

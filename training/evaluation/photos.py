"""The photos of an evaluation, degraded by the model's own chain at a fixed scale.

The degradation of a photo depends only on seed, photo and scale, so every model and every number
of steps sees the same LQ image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from datagen.degradation.apply import degrade_small
from datagen.degradation.draw import draw_degradation
from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.photos.decode import ImageRejected, decode_photo
from datagen.photos.source_file import read_photo
from datagen.photos.sources import list_sources
from datagen.settings import ImageSettings
from training.data.seeded import seeded
from training.evaluation.metrics.fidelity import WINDOW
from training.settings.evaluation import EvaluationSettings


@dataclass(frozen=True)
class DegradedPhoto:
    """An original (RGB uint8, sides cut to multiples of the scale) and its small LQ image."""

    name: str
    """Its path below the folder of photos."""
    original: np.ndarray
    small: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original."""
        height, width = self.original.shape[:2]
        return width, height


def degraded_photos(
    settings: EvaluationSettings,
    degradation: DegradationSettings,
    scale: float,
    *,
    on_small: Callable[[str], None] | None = None,
) -> Iterator[DegradedPhoto]:
    """Every photo of the folder with its LQ image at `scale`, in the order of their names.

    Args:
        on_small: is told of each photo that is left out because it is too small for the scale.

    Raises:
        FlowmapsrError: a photo cannot be read, or is too small and there is no `on_small`.
    """
    for source in list_sources((settings.photos,)).files:
        data = read_photo(source)
        try:
            photo = decode_photo(data, ImageSettings())
        except ImageRejected as error:
            raise FlowmapsrError(f"{source.uri}: {error}; take it out of the folder") from error
        height, width = (int(side // scale * scale) for side in photo.shape[:2])
        if min(height, width) < WINDOW:
            size = f"{source.uri}: {photo.shape[1]}x{photo.shape[0]}"
            problem = f"{size} is too small to evaluate at scale {scale:g}"
            if on_small is None:
                raise FlowmapsrError(f"{problem}; take it out of the folder")
            on_small(problem)
            continue
        original = np.ascontiguousarray(photo[:height, :width])
        rng = seeded(settings.seed, hashlib.sha256(data).hexdigest(), scale)
        drawn = draw_degradation(degradation, rng, scale=scale)
        small = degrade_small(original, drawn)
        yield DegradedPhoto(_name(source.uri, settings.photos), original, small)


def _name(uri: str, folder: str) -> str:
    return uri.removeprefix(folder.rstrip("/") + "/") if uri != folder else os.path.basename(uri)

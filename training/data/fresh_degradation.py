"""Degrades HQ pixels anew in every epoch of a training.

The draws of a sample depend on the training's seed, the epoch and the sample's key alone: they are
the same for any number of workers, for any order of reading and after any resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datagen.degradation.apply import degrade
from datagen.degradation.draw import draw_degradation
from datagen.degradation.settings import DegradationSettings
from training.data.seeded import seeded


@dataclass(frozen=True)
class FreshDegradation:
    settings: DegradationSettings
    """The dataset's chain."""
    seed: int

    def lq(self, hq: np.ndarray, *, key: str, epoch: int, out: np.ndarray) -> None:
        """Writes the LQ at HQ size, float32 (H, W, 3) in [0, 1], of HQ pixels, uint8 (H, W, 3)."""
        drawn = draw_degradation(self.settings, seeded(self.seed, "degradation", epoch, key))
        degrade(hq, drawn, out=out)

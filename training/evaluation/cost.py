"""What restoring by a model costs, whatever the machine: its parameters, and the operations for a
picture of 256x256."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.inference.upscaler import Upscaler
from training.monitoring.mfu import FlopCounter

SIDE = 256
"""Of the picture whose operations are counted, pixels."""


@dataclass(frozen=True)
class Cost:
    """Of one restoration."""

    parameters: int
    """In the model folder: of a model that has its codec, with it."""
    gflop: float
    """In 10^9, a multiplication and an addition being two; codec and margins count, too."""


def cost_of(upscaler: Upscaler, steps: int) -> Cost:
    """Restores a gray picture once, in one piece."""
    gray = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    with FlopCounter() as counter:
        upscaler.restore(gray, steps=steps)
    return Cost(upscaler.parameters(), counter.flops / 1e9)

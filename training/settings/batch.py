"""What a user may set about the batches of a stage: their size, for all samples or by pixel budget.

`training/data/bucket_mix.py` decides which bucket belongs to which budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field

from datagen.records import Probability, Settings


@dataclass(frozen=True)
class BatchSize:
    """Samples of a step, and how many of them a worker handles at once."""

    global_batch: int
    micro_batch: int

    def accumulation(self, workers: int) -> int:
        """Micro batches of one worker in a step, rounded up when the samples do not come out even:
        then some hold fewer."""
        return math.ceil(self.global_batch / (self.micro_batch * workers))


class Budget(Settings):
    """The samples of one of the dataset's pixel budgets, all aspect ratios together."""

    side: int = Field(gt=0)
    """Side of the square that holds as many pixels, as in the dataset's `buckets.budgets`."""
    probability: Probability
    """Relative frequency of its steps; 0 leaves its samples out of the stage."""
    global_batch: int | None = Field(None, ge=1)
    """Samples of such a step; the stage's own when not given."""
    micro_batch: int | None = Field(None, ge=1)
    """Samples that one worker handles at once; the stage's own when not given."""

"""Seconds of restoring one picture, as a table of a paper has them: alone in a batch, on a machine
that does nothing else, the median of calls after some that do not count."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datagen.io import storage
from datagen.records import FrozenModel, UnreadableRecord, read_record, to_json
from training.evaluation.hardware import hardware
from training.evaluation.variants import Variant
from training.run_dir.records import Seconds
from training.settings.benchmark import TimingSettings
from training.settings.evaluation import EvaluationSettings


class SecondsRecord(FrozenModel):
    """The file of a timed model."""

    rows: tuple[Seconds, ...]


@dataclass(frozen=True)
class SpeedTask:
    """A model that is timed."""

    path: str
    variant: Variant


class Restore(Protocol):
    """As an upscaler's, of RGB uint8 (H, W, 3) at its target size."""

    def __call__(self, image: np.ndarray, *, steps: int) -> np.ndarray: ...


@dataclass(frozen=True)
class SpeedWorker:
    """Times models; nothing else may run on its machine."""

    settings: EvaluationSettings
    timing: TimingSettings

    def __call__(self, task: SpeedTask) -> None:
        """Times all sides and steps, and writes them.

        Raises:
            FlowmapsrError: there is no such model, or the file cannot be written.
        """
        upscaler = task.variant.load(self.settings)
        rows = [
            self._timed(task.variant.name, upscaler.restore, side, steps)
            for side in self.timing.sides
            for steps in self.settings.steps
        ]
        storage.write_bytes(task.path, to_json(SecondsRecord(rows=tuple(rows))))

    def _timed(self, method: str, restore: Restore, side: int, steps: int) -> Seconds:
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        seconds = []
        for _ in range(self.timing.warm_ups + self.timing.calls):
            start = time.perf_counter()
            restore(picture, steps=steps)  # its result is on the CPU: nothing is left to wait for
            seconds.append(time.perf_counter() - start)
        low, median, high = np.quantile(seconds[self.timing.warm_ups :], [0.25, 0.5, 0.75])
        return Seconds(
            method=method,
            steps=steps,
            side=side,
            seconds=float(median),
            low=float(low),
            high=float(high),
            calls=self.timing.calls,
            hardware=hardware(),
        )


def read_seconds(path: str) -> tuple[Seconds, ...] | None:
    """The rows of a timed model; None where it is not timed yet."""
    try:
        record = read_record(path, SecondsRecord, remedy="time it again")
    except UnreadableRecord:
        return None
    return None if record is None else record.rows

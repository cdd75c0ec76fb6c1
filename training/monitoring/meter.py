"""Means of losses and speeds between two reports of the training loop. Knows nothing of where they
go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from torch import Tensor

T = TypeVar("T")


class Meter:
    """Collects what happened since the last report."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """
        Args:
            names: of the metrics in `add`'s rows; the first has samples at every step.
        """
        self.names = names
        self._reported: tuple[float, float] | None = None
        self._progress_time = time.monotonic()
        self._start()

    def _start(self) -> None:
        self._sums = torch.zeros(len(self.names), 2, dtype=torch.float64)
        self._images = 0
        self._waited = 0.0
        self._since = time.monotonic()

    def waited(self, wait: Callable[[], T]) -> T:
        """Calls `wait` and counts its time as waiting for data."""
        start = time.monotonic()
        value = wait()
        self._waited += time.monotonic() - start
        return value

    def add(self, sums: Tensor, *, images: int) -> None:
        """One step's sums and counts, (len(names), 2), and its samples, over all workers."""
        self._sums += sums.cpu()
        self._images += images

    def metrics(self) -> dict[str, float]:
        """Means since the last call, named as in MLflow; terms without a sample are left out.

        At least one step must have been added.
        """
        means = {
            name: float(total / count)
            for name, (total, count) in zip(self.names, self._sums, strict=True)
            if count > 0
        }
        self._reported = self._so_far()
        speeds = {
            "perf/images_per_second": self._reported[0],
            "perf/data_wait_fraction": self._waited / (time.monotonic() - self._since),
        }
        self._start()
        return means | speeds

    def speed_and_loss(self) -> tuple[float, float]:
        """Images a second and loss of the last report, or, before the first one, so far."""
        return self._reported or self._so_far()

    def _so_far(self) -> tuple[float, float]:
        total, count = self._sums[0].tolist()
        return self._images / (time.monotonic() - self._since), total / count

    def seconds_since_progress(self) -> float:
        """Seconds since this last said that a progress report is due."""
        return time.monotonic() - self._progress_time

    def progress_written(self) -> None:
        self._progress_time = time.monotonic()


def reset_memory_peak(device: torch.device) -> None:
    """Makes `memory_gb` forget the peaks of what this process did before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_gb(device: torch.device) -> float:
    """Peak memory of this worker on its GPU, or its resident memory on CPU, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9

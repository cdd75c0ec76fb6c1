"""Means of losses and speeds between two reports of the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import psutil
import torch

T = TypeVar("T")


class Recent(NamedTuple):
    """What progress shows of the last report."""

    images_per_second: float
    data_wait_fraction: float
    headline: float


class Meter:
    """Accumulates losses, samples and waiting time since the last report."""

    def __init__(self, headline: str) -> None:
        """
        Args:
            headline: the term shown as progress; it has samples at every step.
        """
        self.headline = headline
        self._reported: Recent | None = None
        self._began = self._progress_time = time.monotonic()
        self._validated = 0.0
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._images = 0
        self._waited = self._degraded = 0.0
        self._steps = 0
        self._since = time.monotonic()

    def waited(self, wait: Callable[[], T]) -> T:
        """Calls `wait` and counts its duration as waiting for data."""
        start = time.monotonic()
        value = wait()
        self._waited += time.monotonic() - start
        return value

    def degraded(self, seconds: float) -> None:
        """Counts what the loader's threads spent on a batch beside the training."""
        self._degraded += seconds

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Counts the block's duration as validation, not as training."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self._validated += seconds
        self._since += seconds

    def add(self, terms: Mapping[str, tuple[float, float]], *, images: int) -> None:
        """Adds one step's terms, as sum and count over all workers, and its samples."""
        for name, (total, count) in terms.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + total, before[1] + count)
        self._images += images
        self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Means over the steps since the last call, at least one, named as in MLflow; terms without
        a sample are left out. The part of validation is that of all time so far; the seconds of
        fresh degradation are those of this worker's threads for a step."""
        means = {name: total / count for name, (total, count) in self._sums.items() if count}
        self._reported = self._so_far()
        speeds = {
            "perf/images_per_second": self._reported.images_per_second,
            "perf/data_wait_fraction": self._reported.data_wait_fraction,
            "perf/validation_fraction": self._validated / (time.monotonic() - self._began),
        }
        if self._degraded:
            speeds["data/degrade_seconds"] = self._degraded / self._steps
        self._start()
        return means | speeds

    def recent(self) -> Recent:
        """Speed, waiting and mean of the headline in the last report; before it, so far."""
        return self._reported or self._so_far()

    def _so_far(self) -> Recent:
        total, count = self._sums[self.headline]
        elapsed = time.monotonic() - self._since
        return Recent(self._images / elapsed, self._waited / elapsed, total / count)

    def progress_is_due(self, every: float) -> bool:
        """Whether so many seconds have passed since this was true, or since the start."""
        is_due = time.monotonic() - self._progress_time > every
        if is_due:
            self._progress_time = time.monotonic()
        return is_due


def reset_memory_peak(device: torch.device) -> None:
    """Resets the peak that `memory_gb` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_gb(device: torch.device) -> float:
    """Peak GPU memory of this worker, or its resident memory on CPU, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9

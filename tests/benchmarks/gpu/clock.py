"""How much of a program's time is left."""

from __future__ import annotations

import time

import torch

from tests.benchmarks.gpu.results import NotMeasured


class Clock:
    def __init__(self, limit: float) -> None:
        """
        Args:
            limit: seconds from now on.
        """
        self._start = time.monotonic()
        self.limit = limit

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        return self.limit - self.seconds

    def require(self, seconds: float = 0.0, *, on_gpu: bool = False) -> None:
        """
        Raises:
            NotMeasured: less time is left, or a GPU is needed and there is none.
        """
        if on_gpu and not torch.cuda.is_available():
            raise NotMeasured("there is no GPU here")
        if self.left < seconds:
            raise NotMeasured(f"too little is left of {self.limit:.0f} s")

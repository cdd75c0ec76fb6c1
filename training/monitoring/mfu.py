"""How much the workers compute: counted once for each kind of step, then known for all of them.

Knows neither networks nor losses, only that steps of one kind on latents of one shape cost alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from training.data.loader import Batch
from training.monitoring.flops import counted_flops
from training.monitoring.peaks import Peak

Kind = tuple[str, int, int]
"""What a step does, and height and width of its latents."""


class Effort:
    """Floating-point operations of this worker's steps.

    The first step of each kind is counted, on all workers; of a compiled network the second, as
    the first one compiles. Samples of a step may cost unequally much (only some are distilled), so
    the mean over the whole step's samples stands for them all.
    """

    def __init__(self, device: torch.device, *, peak: Peak | None, compiled: bool) -> None:
        """
        Args:
            compiled: whether a part of the network goes through `torch.compile`.
        """
        self.device = device
        self.peak = peak
        self.compiled = compiled
        self.per_image: dict[Kind, float] = {}
        """Floating-point operations for a sample, of the kinds counted so far."""
        self._met: set[Kind] = set()
        self._kind: Kind = ("", 0, 0)
        self._step = self._counted = 0
        self._start()

    def _start(self) -> None:
        self._images: Counter[Kind] = Counter()
        self._since = time.monotonic()

    @contextmanager
    def micro_step(self, what: str, batch: Batch) -> Iterator[None]:
        """The block is a micro step on `batch`; steps that differ in cost differ in `what`."""
        height, width = batch.hq.shape[2:]
        self._kind = (what, int(height), int(width))
        counts = batch.micro.weight > 0  # else it only keeps this worker busy with the others
        self._step += len(batch.keys) if counts else 0
        if not (counts and self._is_counted(self._kind)):
            yield
            return
        with counted_flops(compiled=self.compiled) as counter:
            yield
        self._counted += counter.flops

    def _is_counted(self, kind: Kind) -> bool:
        return kind not in self.per_image and (kind in self._met or not self.compiled)

    def end_step(self) -> None:
        """Every worker must call it at the end of a step: after a counted one they share sums."""
        kind = self._kind
        if self._is_counted(kind):
            sums = torch.tensor([self._counted, self._step], dtype=torch.float64).to(self.device)
            dist.all_reduce(sums)
            self.per_image[kind] = float(sums[0] / sums[1])
        self._met.add(kind)
        self._images[kind] += self._step
        self._step = self._counted = 0

    def metrics(self) -> dict[str, float]:
        """`perf/tflops` of this worker since the last call, and `perf/mfu`, its share of the peak.

        Nothing as long as a kind of step since then was never counted; the next call covers it.
        """
        images, elapsed = self._images, time.monotonic() - self._since
        if not images.keys() <= self.per_image.keys():
            return {}
        flops = sum(self.per_image[kind] * count for kind, count in images.items())
        self._start()
        tflops = flops / elapsed / 1e12
        if self.peak is None:
            return {"perf/tflops": tflops}
        return {"perf/tflops": tflops, "perf/mfu": tflops / self.peak.tflops}

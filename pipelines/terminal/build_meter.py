"""Turns finished tasks of a build into speed, rejections and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.terminal.progress import show_progress
from pipelines.terminal.text import human_bytes


class BuildMeter:
    """Sums over finished tasks. Written by the build, read by other threads at any time."""

    def __init__(
        self,
        *,
        total: int,
        done: int = 0,
        rejected: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` samples are planned; `done` and `rejected` of them in earlier runs."""
        self.total, self.done, self.rejected = total, done, rejected
        self.samples = self.bytes = 0
        self._done_before = done
        self._clock = clock
        self._start = clock()

    def add(self, *, planned: int, samples: int, bytes: int, rejected: int) -> None:
        """Adds one finished task: of `planned` samples, `samples` were stored."""
        self.done += planned
        self.samples += samples
        self.bytes += bytes
        self.rejected += rejected

    @property
    def percent(self) -> float:
        return 100 * self.done / self.total if self.total else 100.0

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before the first sample."""
        made = self.done - self._done_before
        return (self.total - self.done) * self._elapsed() / made if made else None

    def note(self) -> str:
        """`12.3 samples/s, 4.5 MB/s, 3 rejected`: the speed is that of this run."""
        elapsed = self._elapsed()
        return (
            f"{self.samples / elapsed:.1f} samples/s, {human_bytes(round(self.bytes / elapsed))}/s,"
            f" {self.rejected} rejected"
        )

    def _elapsed(self) -> float:
        return max(self._clock() - self._start, 1e-3)


@contextmanager
def watch_on_terminal(meter: BuildMeter) -> Iterator[Callable[[], None]]:
    """The meter as a bar or lines on stderr; call the yielded function when it has changed."""
    with show_progress("dataset", total=meter.total, unit="samples", done=meter.done) as progress:
        yield lambda: progress.reach(meter.done, note=meter.note())

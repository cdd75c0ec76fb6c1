"""Shows progress on stderr: a bar on a terminal, else a line every few seconds; meters a build."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import filesize

from pipelines.terminal.doing import doing, said_something, says_nothing
from pipelines.terminal.text import duration
from training.monitoring.json_log import tell

SECONDS_BETWEEN_LINES = 9.0
_SPEED_OVER = 300.0
"""Seconds that a bar's time left looks back: a large picture's tiles take many."""
Clock = Callable[[], float]
Show = Callable[[float, int, str], None]
"""Called as `Progress.reach`."""


class Progress:
    """Passed to the work, which reports its progress here."""

    def __init__(self, show: Show, *, done: int) -> None:
        self._show, self._done = show, float(done)

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Adds `count` to those that are done."""
        self.reach(self._done + count, note=note)

    def reach(self, done: float, *, whole: int | None = None, note: str = "") -> None:
        """Sets how much is done, by which the time left is estimated.

        Args:
            done: of the total; with shares of what is under way, or weighed by its work.
            whole: how many are done, to be shown; `done` rounded down when None.
        """
        self._done = done
        self._show(done, int(done) if whole is None else whole, note)


@contextmanager
def show_progress(title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Progress of one piece of work, of which earlier runs had done `done`."""
    doing(title)
    if sys.stderr.isatty():
        with _bar(title, total=total, unit=unit, done=done) as show:
            yield Progress(show, done=done)
    else:
        lines = _Lines(title, total=total, unit=unit, done=done)
        yield Progress(lines.show, done=done)
        lines.close()


class _Lines:
    def __init__(self, title: str, *, total: int, unit: str, done: int) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._whole, self._note = float(done), done, ""
        self._done_before, self._start = float(done), 0.0
        self._printed = -1.0
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def show(self, done: float, whole: int, note: str) -> None:
        if not self._start and done > self._done_before:
            # The first one waits for workers to start, so it says nothing about the speed.
            self._done_before, self._start = done, time.monotonic()
        self._done, self._whole, self._note = done, whole, note
        if time.monotonic() >= self._next_line:
            self._print()

    def close(self) -> None:
        if self._done != self._printed:
            self._print()

    def _print(self) -> None:
        left = self._seconds_left()
        parts = [f"{self._title}: {self._whole}/{self._total} {self._unit}"]
        parts += [f"{duration(left)} left"] if left is not None else []
        tell(
            "  ".join(filter(None, [*parts, self._note])),
            event="progress",
            what=self._title,
            done=self._whole,
            total=self._total,
            unit=self._unit,
            seconds_left=left,
        )
        said_something()
        self._printed = self._done
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def _seconds_left(self) -> float | None:
        made = self._done - self._done_before
        stands_still = self._done == self._printed
        if made <= 0 or self._done >= self._total or stands_still:
            return None
        return (time.monotonic() - self._start) * (self._total - self._done) / made


@contextmanager
def _bar(title: str, *, total: int, unit: str, done: int) -> Iterator[Show]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[whole]}/{task.total:.0f} {task.fields[unit]}"),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}"),
    )
    display = bars.Progress(
        *columns, console=Console(stderr=True), speed_estimate_period=_SPEED_OVER
    )
    with says_nothing(), display:
        task = display.add_task(title, total=total, completed=done, unit=unit, note="", whole=done)
        yield lambda done, whole, note: display.update(task, completed=done, whole=whole, note=note)


class BuildMeter:
    """Sums over finished tasks. Written by the build, read by other threads at any time."""

    def __init__(
        self, *, total: int, done: int = 0, rejected: int = 0, clock: Clock = time.monotonic
    ) -> None:
        """`total` samples are planned; `done` and `rejected` of them in earlier runs."""
        self.total, self.done, self.rejected = total, done, rejected
        self.samples = self.bytes = 0
        self._done_before = done
        self._clock, self._start = clock, clock()

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
        speed = filesize.decimal(round(self.bytes / elapsed))
        return f"{self.samples / elapsed:.1f} samples/s, {speed}/s, {self.rejected} rejected"

    def _elapsed(self) -> float:
        return max(self._clock() - self._start, 1e-3)

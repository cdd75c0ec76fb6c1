"""What `flowmapsr status` looks at, once or again and again until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datagen.io import storage
from pipelines.terminal import status_report
from pipelines.terminal.doing import doing, says_nothing
from pipelines.terminal.process_edge import VerbResult
from training.monitoring.json_log import tell

if TYPE_CHECKING:
    from training.tracking.summary.status import RunStatus

SECONDS = 2.0
"""Between two looks; workers write their progress as often."""
BEGIN_SECONDS = 600.0
"""How long `--watch` waits for something to begin."""


@dataclass(frozen=True)
class Seen:
    """One look."""

    result: VerbResult
    lines: Sequence[str]
    """In short, one of each run."""
    at_work: bool
    done: bool
    """Completely, not just stopped."""


Look = Callable[[], Seen]


def look_at(places: Sequence[str]) -> Look:
    """How to look at folders of trainings, or at a dataset.

    Raises:
        NoRun: there is none in one of them.
    """
    from datagen.build.progress import BuildProgress, is_dataset
    from training.tracking.summary.status import NoRun, compare_runs, find_runs, run_status

    if len(places) == 1 and is_dataset(places[0]):
        progress = BuildProgress(places[0])

        def build() -> Seen:
            found = progress.look()
            result, line = status_report.one_dataset(found), status_report.dataset_line(found)
            return Seen(result, [line], found.state == "building", found.state == "complete")

        return build
    for place in places:
        if storage.is_remote(place):
            raise NoRun(
                f"{place}: no build of a dataset has begun there; trainings are in local folders"
            )
    folders = find_runs(places)

    def trainings() -> Seen:
        if len(folders) == 1:
            runs: Sequence[RunStatus] = [run_status(folders[0])]
            result = status_report.one_run(runs[0])
        else:
            found = compare_runs(folders)
            runs, result = found.runs, status_report.several_runs(found)
        at_work = any(stage.state == "running" for run in runs for stage in run.stages)
        lines = [status_report.run_line(run) for run in runs]
        return Seen(result, lines, at_work, all(run.done for run in runs))

    return trainings


def await_begin(places: Sequence[str]) -> Look:
    """`look_at`, once there is something: one may watch for what a schedule is about to start.

    Raises:
        NoRun: there is nothing for ten minutes.
    """
    from training.tracking.summary.status import NoRun

    deadline, said = time.monotonic() + BEGIN_SECONDS, False
    while True:
        try:
            return look_at(places)
        except NoRun:
            if time.monotonic() > deadline:
                raise
        if not said:
            doing(f"nothing in {', '.join(places)} yet: waiting for it to begin")
            said = True
        time.sleep(SECONDS)


def watch(look: Look) -> VerbResult:
    """Shows every change on stderr until nothing is at work; the last look, which is ok if all is
    done."""
    with says_nothing(), _redrawn() if sys.stderr.isatty() else _line_by_line() as show:
        while True:
            seen = look()
            show(seen)
            if not seen.at_work:
                return replace(seen.result, ok=seen.result.ok and seen.done)
            time.sleep(SECONDS)


@contextmanager
def _redrawn() -> Iterator[Callable[[Seen], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # What is left at the end is printed as the result.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda seen: live.update(Text("\n".join(seen.result.lines)), refresh=True)


@contextmanager
def _line_by_line() -> Iterator[Callable[[Seen], None]]:
    shown: set[str] = set()

    def show(seen: Seen) -> None:
        for line in [line for line in seen.lines if line not in shown]:
            tell(line, event="status")
        shown.clear()
        shown.update(seen.lines)

    yield show

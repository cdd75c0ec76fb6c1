"""What `flowmapsr review` prints: the compared runs, and the address of their page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.text import command, table

if TYPE_CHECKING:
    from training.tracking.review.chosen import Choice
    from training.tracking.review.page import Review

MOST_ROWS, MOST_COLUMNS = 10, 5


def reviewed(found: Review) -> VerbResult:
    """A comparison of runs, the best first, and where to look at it."""
    names = list(dict.fromkeys(name for run in found.runs for name in run.metrics))[:MOST_COLUMNS]
    cells = [
        (run.name, *(f"{run.metrics[name]:.5g}" if name in run.metrics else "-" for name in names))
        for run in found.runs[:MOST_ROWS]
    ]
    order = "newest first" if found.sorted_by is None else f"by {found.sorted_by}"
    lines = [
        f"{found.role.capitalize()}s of experiment {found.experiment}, {order}:",
        *table(("", *names), cells),
        *(["..."] if len(found.runs) > len(cells) else []),
        *(f"Note: {problem}" for problem in found.problems),
        f"  table   {found.table}",
        f"  charts  {found.charts}",
    ]
    if not found.has_address:
        lines.append(f"They follow the address of an MLflow server of {found.store}.")
    return VerbResult(found.model_dump(mode="json"), lines)


def experiments_listed(found: Sequence[Choice]) -> VerbResult:
    """Several experiments that could be reviewed, and how to choose one."""
    lines = [
        *table(
            ("experiment", "newest training"),
            [(one.experiment, one.newest_training) for one in found],
        ),
        f"Next: {command('review', found[0].experiment)}",
    ]
    return VerbResult({"experiments": [one.model_dump(mode="json") for one in found]}, lines)

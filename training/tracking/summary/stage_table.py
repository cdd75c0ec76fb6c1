"""Tables that compare the stages of a run, and the starts of a stage, read from their folders."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from training.run_dir.further import on_old_weights
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_seconds, read_starts
from training.settings.held_out import is_headline
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Tags
from training.tracking.journal import last_values
from training.tracking.summary.stage_facts import StageFacts

Cell = str | int | float | None

OLD_WEIGHTS, RESTARTS = "on old weights of", "restarts"
DONE = ("state", "steps", "ended", OLD_WEIGHTS, "images")
EVALUATION = "eval/"
"""Begins the metrics of an evaluation on photos, which a run has."""
QUALITY = ("loss", "gan", "val", "eval")
"""Groups of metrics that are shown with their last values."""
SPEED: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "perf/images_per_second": ("images/s", statistics.fmean),
    "perf/tflops": ("TFLOP/s of a worker", statistics.fmean),
    "perf/mfu": ("MFU", statistics.fmean),
    "perf/hfu": ("HFU", statistics.fmean),
    "perf/data_wait_fraction": ("data wait", statistics.fmean),
    "perf/memory_gb": ("memory GB", max),
}
"""Speed: the name of the row, and what is shown of all values."""
HOURS = {True: "GPU hours", False: "worker hours"}
"""Of all workers together, by whether they are GPUs."""


def shown_as_tables(*names: str) -> Tags:
    """The tag that makes MLflow show JSON files as tables."""
    tables = [{"path": name, "type": "table"} for name in names]
    return Tags(values={"mlflow.loggedArtifacts": json.dumps(tables)})


@dataclass(frozen=True)
class Table:
    """Rows of equal length, with a name for each column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_json(self) -> bytes:
        """In pandas' "split" format, which MLflow's page shows."""
        rows = [["" if cell is None else cell for cell in row] for row in self.rows]
        return json.dumps({"columns": self.columns, "data": rows}).encode()

    def to_markdown(self) -> str:
        lines: list[tuple[Cell, ...]] = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(map(_text, line))} |\n" for line in lines)


def stage_table(recipe: TrainingRecipe, stages: Sequence[StageFacts]) -> Table:
    """The current table of a run: a column for each stage, a row for each measure that any has."""
    columns = {one.settings.name: _cells(recipe, one) for one in stages}
    for later in on_old_weights(recipe):
        columns[later.stage][OLD_WEIGHTS] = str(later.grew_from)
    found = {name for cells in columns.values() for name in cells}
    quality = sorted(
        (name for name in found if name.split("/")[0] in QUALITY),
        key=lambda name: (QUALITY.index(name.split("/")[0]), name),
    )
    speed = (row for row, _ in SPEED.values())
    rows_of_all = (*DONE, *quality, *speed, *HOURS.values(), RESTARTS)
    names = [name for name in rows_of_all if name in found]
    rows = tuple((name, *(cells.get(name) for cells in columns.values())) for name in names)
    return Table(("stage", *columns), rows)


def start_table(stage: StagePaths) -> Table:
    """A row for each start of a stage: when, where, why, and how long its phases took."""
    starts, seconds = read_starts(stage), read_seconds(stage)
    phases = list(dict.fromkeys(phase for one in seconds.values() for phase in one))
    rows = []
    for number, start in enumerate(starts, 1):
        began = datetime.fromtimestamp(start.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        hosts, took = ", ".join(start.workers.machines), seconds.get(number, {})
        before = "; ".join(filter(None, (start.ended_before, start.skipped_checkpoints)))
        place = (number, began, len(start.workers.hosts), hosts, start.step, before)
        total = round(sum(took.values()), 1) if took else None
        split = (round(took[phase], 1) if phase in took else None for phase in phases)
        rows.append((*place, total, *split))
    columns = ("start", "began", "workers", "hosts", "from step", "before", "seconds to first step")
    return Table((*columns, *phases), tuple(rows))


def _cells(recipe: TrainingRecipe, stage: StageFacts) -> dict[str, Cell]:
    """The cells of a stage by row name."""
    started = "not finished" if stage.starts else "not started"
    cells: dict[str, Cell] = {
        "state": "done" if stage.record else started,
        "steps": stage.steps,
        RESTARTS: len(stage.restarts),
    }
    if stage.record is not None:
        cells["images"] = stage.record.images_seen
        if stage.record.ended:
            cells["ended"] = stage.record.ended
    last = {name: series.values[-1] for name, series in stage.metrics.items()}
    if stage.settings.name == recipe.stages[-1].name:  # whose model was evaluated
        last |= last_values(stage.folder.run, prefix=EVALUATION)
    for name, value in last.items():
        group = name.split("/")[0]
        if group in QUALITY and (group != "val" or is_headline(name)):
            cells[name] = _rounded(value)
    if stage.progress and stage.starts:
        cells[HOURS[stage.on_gpus]] = _rounded(stage.hours)
    for name, (row, pick) in SPEED.items():
        if name in stage.metrics:
            cells[row] = _rounded(pick(stage.metrics[name].values))
    return cells


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _text(cell: Cell) -> str:
    return "-" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell)

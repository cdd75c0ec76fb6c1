"""Tables that compare the stages of a run, and the starts of a stage, read from their folders."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datagen.io import storage
from training.run_dir.paths import RunPaths, StagePaths, stage_paths
from training.run_dir.starts import count_restarts, read_progress, read_seconds, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Artifact, Event, Tags
from training.tracking.journal import last_values, read_metrics

Cell = str | int | float | None

DONE, RESTARTS = ("state", "steps", "images"), "restarts"
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


def shown_as_table(name: str) -> Tags:
    """The tag that makes MLflow show a JSON file as a table."""
    return Tags(values={"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})


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


def stage_table(recipe: TrainingRecipe) -> Table:
    """The current table of a run: a column for each stage, a row for each measure that any has."""
    stages = {stage.name: _facts(recipe, stage) for stage in stage_paths(recipe)}
    found = {name for facts in stages.values() for name in facts}
    quality = sorted(
        (name for name in found if name.split("/")[0] in QUALITY),
        key=lambda name: (QUALITY.index(name.split("/")[0]), name),
    )
    speed = (row for row, _ in SPEED.values())
    rows_of_all = (*DONE, *quality, *speed, *HOURS.values(), RESTARTS)
    names = [name for name in rows_of_all if name in found]
    rows = tuple((name, *(facts.get(name) for facts in stages.values())) for name in names)
    return Table(("stage", *stages), rows)


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


def write_stage_table(recipe: TrainingRecipe) -> list[Event]:
    """Writes `stages.json` and `stages.md` into the run's folder; they and the note on top of the
    run's page, as events."""
    run, table = RunPaths(Path(recipe.output)), stage_table(recipe)
    note = table.to_markdown()
    files = {run.stage_table: table.to_json(), run.stage_table_text: note.encode()}
    for path, data in files.items():
        storage.write_bytes(str(path), data)
    tags = Tags(values={"mlflow.note.content": note})
    shown = shown_as_table(run.stage_table.name)
    return [*(Artifact(path=str(path)) for path in files), shown, tags]


def _facts(recipe: TrainingRecipe, folder: StagePaths) -> dict[str, Cell]:
    """The cells of a stage by row name."""
    record = folder.finished_record()
    starts, progress = read_starts(folder), read_progress(folder)
    metrics = read_metrics(folder.root)
    started = "not finished" if starts else "not started"
    facts: dict[str, Cell] = {
        "state": "done" if record else started,
        "steps": record.steps if record else progress.step if progress else 0,
        RESTARTS: count_restarts(folder),
    }
    if record is not None:
        facts["images"] = record.images_seen
    last = {name: series.values[-1] for name, series in metrics.items()}
    if folder.name == recipe.stages[-1].name:  # whose model was evaluated
        last |= last_values(folder.run, prefix=EVALUATION)
    for name, value in last.items():
        if name.split("/")[0] in QUALITY:
            facts[name] = _rounded(value)
    if starts and progress:
        facts[HOURS[starts[-1].workers.on_gpus]] = _rounded(progress.worker_hours)
    for name, (row, pick) in SPEED.items():
        if name in metrics:
            facts[row] = _rounded(pick(metrics[name].values))
    return facts


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _text(cell: Cell) -> str:
    return "-" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell)

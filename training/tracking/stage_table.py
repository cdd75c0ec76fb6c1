"""A table that compares the stages of a run, read from its folder, for people and for MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from datagen.io import storage
from training.run_dir.paths import STAGE_TABLE, RunPaths, StagePaths, stage_paths
from training.run_dir.starts import read_progress, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import Series, read_metrics

LOGGED_TABLES = {"mlflow.loggedArtifacts": json.dumps([{"path": STAGE_TABLE, "type": "table"}])}
"""The tag that makes MLflow show a JSON file as a table."""

Cell = str | int | float | None

MEANS = {
    "perf/images_per_second": "images/s",
    "perf/tflops": "TFLOP/s of a worker",
    "perf/mfu": "MFU",
    "perf/hfu": "HFU",
    "perf/data_wait_fraction": "data wait",
}
LARGEST = {"perf/memory_gb": "memory GB"}
LAST = {"perf/gpu_hours": "GPU hours", "perf/worker_hours": "worker hours"}
DONE, RESTARTS = ("state", "steps", "images"), "restarts"
FINALS = ("loss", "gan", "val")
"""Groups of metrics that are shown with their last values."""


@dataclass(frozen=True)
class StageTable:
    """A column for each stage and a row for each measure that any stage has."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_json(self) -> bytes:
        """In pandas' "split" format, which MLflow's page shows."""
        rows = [["" if cell is None else cell for cell in row] for row in self.rows]
        return json.dumps({"columns": self.columns, "data": rows}).encode()

    def to_markdown(self) -> str:
        lines: list[tuple[Cell, ...]] = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(map(_text, line))} |\n" for line in lines)


def stage_table(recipe: TrainingRecipe) -> StageTable:
    """The current table of a run."""
    stages = {stage.name: _facts(recipe, stage) for stage in stage_paths(recipe)}
    names = sorted({name for facts in stages.values() for name in facts}, key=_row_order)
    rows = tuple((name, *(facts.get(name) for facts in stages.values())) for name in names)
    return StageTable(("stage", *stages), rows)


def write_stage_table(recipe: TrainingRecipe) -> list[Path]:
    """Writes `stages.json` and `stages.md` into the run's folder."""
    run, table = RunPaths(Path(recipe.output)), stage_table(recipe)
    storage.write_bytes(str(run.stage_table), table.to_json())
    storage.write_bytes(str(run.stage_table_text), table.to_markdown().encode())
    return [run.stage_table, run.stage_table_text]


def _facts(recipe: TrainingRecipe, folder: StagePaths) -> dict[str, Cell]:
    """The cells of a stage by row name."""
    record = folder.finished_record()
    progress = None if record else read_progress(folder)
    metrics, starts = read_metrics(folder.root), read_starts(folder)
    facts: dict[str, Cell] = {
        "state": "done" if record else "not finished" if starts else "not started",
        "steps": record.steps if record else progress.step if progress else 0,
    }
    if record is not None:
        facts["images"] = record.images_seen
    finals = {name: one for name, one in metrics.items() if name.split("/")[0] in FINALS}
    finals |= last_validation(recipe, folder)
    facts |= {name: _rounded(series.last) for name, series in finals.items()}
    for names, pick in ((MEANS, "mean"), (LARGEST, "largest"), (LAST, "last")):
        found = {names[name]: metrics[name] for name in names if name in metrics}
        facts |= {name: _rounded(getattr(series, pick)) for name, series in found.items()}
    return facts | {RESTARTS: max(0, len(starts) - 1)}


def last_validation(recipe: TrainingRecipe, folder: StagePaths) -> dict[str, Series]:
    """Last validation of the stage; the run's evaluation belongs to its last stage."""
    validation = read_metrics(folder.root, prefix="val/")
    if folder.name != recipe.stages[-1].name:
        return validation
    return validation | read_metrics(folder.run, prefix="val/")


def _row_order(name: str) -> tuple[int, str]:
    """Sort key of a row: progress, then quality, speed and cost."""
    group = name.split("/")[0]
    if group in FINALS:
        return len(DONE) + FINALS.index(group), name
    measured = [*MEANS.values(), *LARGEST.values(), *LAST.values(), RESTARTS]
    return (DONE.index(name), "") if name in DONE else (100 + measured.index(name), "")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _text(cell: Cell) -> str:
    return "-" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell)

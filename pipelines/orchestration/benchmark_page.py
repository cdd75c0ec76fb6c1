"""What a benchmark shows on the page of its Prefect run: its table."""

from __future__ import annotations

from pipelines.orchestration.run_page import show_end
from pipelines.terminal.text import counted, duration
from training.run_dir.records import BenchmarkRecord
from training.settings.benchmark import BenchmarkRecipe
from training.tracking.benchmark_table import table_of
from training.tracking.summary.stage_table import Table


def show_benchmark(recipe: BenchmarkRecipe, record: BenchmarkRecord, *, seconds: float) -> None:
    """Shows what a benchmark found, and where it is."""
    rows = record.found.rows
    models = counted(len(record.found.models), "model")
    new = f"{record.measured} of {counted(record.chunks, 'chunk')} measured"
    message = f"{models}, {new}" if record.chunks else f"{models} timed"
    if record.nothing_left:
        message = f"{models}, nothing new"
    facts = (
        ("time", duration(seconds)),
        ("results", f"`{recipe.output}`"),
        ("report", f"`{record.report}`" if record.report else "none"),
        ("MLflow run", record.mlflow or "not logged"),
        *((name, f"`{folder}`") for name, folder in record.found.models.items()),
        *(("not measured", note) for note in record.found.notes),
    )
    tables = [table_of(rows), *([table_of((), record.timings)] if record.timings else [])]
    shown = [one.to_markdown() for one in tables if one.rows]
    show_end(
        recipe.output,
        message,
        "\n".join([*shown, Table(("this run", message), facts).to_markdown()]),
        [],
    )

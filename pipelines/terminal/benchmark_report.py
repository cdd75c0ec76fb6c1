"""What `flowmapsr benchmark` prints at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.reports import difference_lines, evaluation_rows, evaluation_table
from pipelines.terminal.text import command, counted, table

if TYPE_CHECKING:
    from training.run_dir.records import BenchmarkRecord, Seconds
    from training.settings.benchmark import BenchmarkRecipe


def benchmarked(recipe: BenchmarkRecipe, record: BenchmarkRecord) -> VerbResult:
    """The table of a benchmark, and where everything is."""
    from training.evaluation.differences import differences
    from training.evaluation.results import RESULTS

    found, compared = record.found, differences(record.found)
    result = {
        "output": recipe.output,
        "models": found.models,
        **evaluation_rows(found.rows),
        "differences": [one.model_dump(mode="json") for one in compared],
        "timings": [one.model_dump(mode="json") for one in record.timings],
        "notes": list(found.notes),
        "chunks": record.chunks,
        "measured": record.measured,
        "nothing_left": record.nothing_left,
        "curves": list(record.curves),
        "report": record.report,
        "mlflow": record.mlflow,
    }
    next_step = command(
        "upscale", "PHOTO", "-o", "OUT.png", "--model", next(iter(found.models.values()))
    )
    if record.curves:
        next_step += " --preset detailed"
    lines = [
        *(evaluation_table(found.rows) if found.rows else []),
        *difference_lines(compared),
        *_timing_table(record.timings),
        *(f"Note: {note}" for note in found.notes),
        *_work_lines(record),
        f"Wrote {recipe.output}: {RESULTS}, summary.json",
        *([f"Wrote {record.report}: open it in a browser"] if record.report else []),
        *(f"Wrote the quality curve of {folder}" for folder in record.curves),
        *([f"Logged to MLflow: {record.mlflow}"] if record.mlflow else []),
        f"Next: {next_step}",
    ]
    return VerbResult(result, lines)


def _work_lines(record: BenchmarkRecord) -> list[str]:
    """What was new in it."""
    chunks = f"{counted(record.chunks, 'chunk')} of photos"
    if record.nothing_left:
        before = f"all {chunks} were measured" if record.chunks else "all models were timed"
        return [f"Nothing was left to do: {before} before."]
    return [f"Measured {record.measured} of {chunks}."] if record.chunks else []


def _timing_table(timings: Sequence[Seconds]) -> list[str]:
    if not timings:
        return []
    cells = [
        (one.method, str(one.steps), f"{one.side}x{one.side}", f"{one.seconds:.4g}",
         f"{one.low:.4g} to {one.high:.4g}")
        for one in timings
    ]  # fmt: skip
    first = timings[0]
    calls = counted(first.calls, "call")
    how = f"Median of {calls} and the middle half of them, on {first.hardware}."
    return [*table(("method", "steps", "pixels", "seconds", "middle half"), cells), how]


def elir_speed(
    settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], logged: str | None
) -> VerbResult:
    """The table of ELIR's parts."""
    cells = [
        (
            "field, a step" if row["part"] == "field" else row["part"],
            f"{row['parameters']:,}",
            f"{row['trained_parameters']:,}",
            f"{row['gflop']:.1f}",
            f"{row['images_per_second']:.2f}",
        )
        for row in rows
    ]
    headings = ("part", "parameters", "in training", "GFLOP", "images/s")
    precision = "bf16" if settings["bf16"] else "fp32"
    how = (
        f"{settings['side']}x{settings['side']} pixels, batches of {settings['batch']}, "
        f"{settings['steps']} steps, {precision}, {settings['hardware']}, "
        f"median of {settings['calls']} calls."
    )
    where = [f"Logged to MLflow: {logged}"] if logged else []
    result = {"settings": dict(settings), "rows": list(rows), "mlflow": logged}
    return VerbResult(result, [*table(headings, cells), how, *where])

"""What a benchmark's files hold, as results, page and curves, and as a run of MLflow's: its end,
and all of it where nothing is left to do, which needs neither Ray nor Prefect."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from datagen.io import storage
from datagen.io.lock import BENCHMARK, output_lock
from datagen.io.weight_files import read_json
from training.evaluation.benchmark import (
    Plan,
    gathered,
    plan_benchmark,
    speed_tasks,
)
from training.evaluation.chunks import Chunk
from training.evaluation.curve import write_curves
from training.evaluation.report.example_worker import example_tasks, read_examples
from training.evaluation.report.examples import Example
from training.evaluation.report.page import report_page
from training.evaluation.results import RESULTS, SUMMARY, TIMINGS, write_results
from training.evaluation.speed import read_seconds
from training.run_dir.paths import REPORT
from training.run_dir.records import BenchmarkRecord, Evaluation, Seconds
from training.settings.benchmark import BenchmarkRecipe
from training.tracking.benchmark_run import log_benchmark
from training.tracking.benchmark_table import links, table_of, values_of
from training.tracking.events import Artifact
from training.weights.model_folder import CONFIG


@dataclass(frozen=True)
class Results:
    """All that a benchmark measures, times and draws."""

    found: Evaluation
    timings: tuple[Seconds, ...]
    examples: tuple[Example, ...]


def finished_benchmark(recipe: BenchmarkRecipe) -> BenchmarkRecord | None:
    """Writes and logs the results of a benchmark whose every part is done; None where something is
    left to do, and nothing is written.

    Raises:
        FlowmapsrError: as `plan_benchmark`; or another benchmark holds the output.
    """
    with output_lock(recipe.output, BENCHMARK):
        plan = plan_benchmark(recipe)
        kept = kept_results(plan, plan.pending())
        return None if kept is None else write_report(plan, kept, measured=0, nothing_left=True)


def kept_results(plan: Plan, pending: Sequence[Chunk]) -> Results | None:
    """What the files hold; None where a chunk, a timing or pictures are missing."""
    timings = [read_seconds(one.path) for one in speed_tasks(plan)]
    if pending or None in timings:
        return None
    found = gathered(plan)
    drawn = [read_examples(one.path) for one in example_tasks(plan, found.pictures)]
    if None in drawn:
        return None
    return Results(
        found,
        tuple(row for rows in timings for row in rows or ()),
        tuple(one for examples in drawn for one in examples or ()),
    )


def write_report(
    plan: Plan, results: Results, *, measured: int, nothing_left: bool
) -> BenchmarkRecord:
    """Writes results, page and curves, and logs them to MLflow.

    Raises:
        FlowmapsrError: a file cannot be written, or a curve lacks its metrics.
    """
    recipe, found = plan.recipe, results.found
    write_results(recipe.output, recipe, found, results.timings)
    report = storage.join(recipe.output, REPORT) if recipe.report else None
    if report is not None:
        title = f"{', '.join(found.models)}: benchmark"
        page = report_page(title, recipe, found, results.examples, timings=results.timings)
        storage.write_bytes(report, page)
    curves = [] if recipe.curve is None else write_curves(found, plan.variants.each, recipe.curve)
    return BenchmarkRecord(
        found=found,
        timings=results.timings,
        chunks=len(plan.chunks),
        measured=measured,
        nothing_left=nothing_left,
        curves=tuple(map(str, curves)),
        report=report,
        mlflow=_track(recipe, results),
    )


def _track(recipe: BenchmarkRecipe, results: Results) -> str | None:
    """Logs the table, its files and where the models are from; where, or None."""
    found, timings = results.found, results.timings
    trained_on = {
        name: str(read_json(Path(folder) / CONFIG)["dataset_digest"])
        for name, folder in found.models.items()
    }
    with TemporaryDirectory(prefix="flowmapsr-") as folder:
        files = []
        for name in (RESULTS, TIMINGS, SUMMARY, REPORT):
            uri = storage.join(recipe.output, name)
            if storage.exists(uri):
                path = Path(folder, name)
                path.write_bytes(storage.read_bytes(uri))
                files.append(Artifact(path=str(path)))
        return log_benchmark(
            recipe.output.rstrip("/").rpartition("/")[2],
            recipe.model_dump(mode="json", exclude_none=True),
            values_of(found.rows, timings),
            more=[*links(found.models, trained_on, table_of(found.rows, timings)), *files],
            experiment=recipe.mlflow_experiment,
            results=_digest(recipe, results),
        )


def _digest(recipe: BenchmarkRecipe, results: Results) -> str:
    """Of what a run of MLflow's holds, with every measured second: the same for a command that is
    run again with nothing left to do."""
    parts = (results.found, *results.timings)
    digest = hashlib.sha256(f"{recipe.digest()} {recipe.output} {recipe.report}".encode())
    for part in parts:
        digest.update(part.model_dump_json().encode())
    return digest.hexdigest()

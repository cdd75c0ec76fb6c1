"""The flow of a benchmark: plan, chunks of photos on Ray, timing, table, report. What was measured
is kept, and a run that was stopped goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow

from datagen.io import storage
from datagen.io.lock import BENCHMARK, OutputLock, output_lock
from datagen.io.weight_files import read_json
from pipelines.cluster.actor_pool import run_tasks
from pipelines.cluster.ray_session import cluster_nodes, ray_cluster
from pipelines.cluster.upscale import plan_photo_workers
from pipelines.cluster.workers import WorkerPlan, WorkerRequest
from pipelines.environment import default_tracking_uri
from pipelines.orchestration.benchmark_page import show_benchmark
from pipelines.orchestration.guard import is_deployed, task_step
from pipelines.orchestration.run_page import progress_shown
from pipelines.orchestration.run_report import reported, say
from pipelines.terminal.doing import doing
from pipelines.terminal.progress import show_progress
from pipelines.terminal.text import counted
from training.evaluation.benchmark import (
    Plan,
    gathered,
    plan_benchmark,
    speed_tasks,
)
from training.evaluation.chunks import Chunk
from training.evaluation.curve import write_curves
from training.evaluation.report.example_worker import ExampleTask, ExampleWorker, example_tasks
from training.evaluation.report.examples import Example
from training.evaluation.report.page import report_page
from training.evaluation.results import RESULTS, SUMMARY, TIMINGS, write_results
from training.evaluation.speed import SpeedTask, SpeedWorker, read_seconds
from training.run_dir.paths import REPORT
from training.run_dir.records import BenchmarkRecord, Evaluation, Seconds
from training.settings.benchmark import BenchmarkRecipe
from training.tracking.benchmark_run import log_benchmark
from training.tracking.benchmark_table import links, table_of, values_of
from training.tracking.events import Artifact
from training.weights.model_folder import CONFIG

log = logging.getLogger(__name__)


@flow(name="benchmark", flow_run_name="{recipe.output}")
@reported
def benchmark(recipe: BenchmarkRecipe) -> BenchmarkRecord:
    """Models and baselines on the same photos; run it again to continue where it stopped.

    Args:
        recipe: The models, the photos, what is measured, and where the results are written.
    """
    start = time.monotonic()
    if "://" not in recipe.output:
        default_tracking_uri(recipe.output, worker=is_deployed())
    with output_lock(recipe.output, BENCHMARK) as lock, ray_cluster(cpus=1):
        doing("planning")
        plan = task_step("plan", lambda: plan_benchmark(recipe))
        storage.remove_leftovers(recipe.output)
        pending = plan.pending()
        task_step("measure", lambda: measure_step(plan, pending, lock))
        timings = task_step("time", lambda: time_step(plan, lock))
        found = gathered(plan)
        doing("drawing pictures")
        examples = task_step("pictures", lambda: examples_step(plan, found))
    doing("writing the results")
    record = task_step("report", lambda: report_step(plan, found, timings, examples, len(pending)))
    show_benchmark(recipe, record, seconds=time.monotonic() - start)
    return record


def measure_step(plan: Plan, pending: Sequence[Chunk], lock: OutputLock) -> None:
    """Measures the chunks that are missing, on the connected Ray cluster.

    Raises:
        FlowmapsrError: one cannot be measured, or another benchmark has taken over the output.
    """
    total, done = len(plan.chunks), len(plan.chunks) - len(pending)
    if total:
        say(f"plan: {counted(total, 'chunk')} of photos, {done} of them done before")
    if not pending:
        return
    so_far = [done]
    with (
        show_progress("benchmark", total=total, unit="chunks", done=done) as progress,
        progress_shown(
            plan.recipe.output,
            lambda: (100 * so_far[0] / total, f"{so_far[0]} of {total} chunks"),
        ),
    ):

        def note(chunk: Chunk, _: int) -> None:
            so_far[0] += 1
            name = "baselines" if chunk.variant is None else chunk.variant.name
            progress.reach(so_far[0], note=f"{name} at x{chunk.photos[0].scale:g}")
            lock.raise_if_lost()

        run_tasks(plan.worker(), pending, workers=_workers(plan), on_done=note)


def time_step(plan: Plan, lock: OutputLock) -> tuple[Seconds, ...]:
    """Times the models, one after the other on a machine of their own; those timed before keep
    their seconds."""
    if plan.recipe.timing is None:
        return ()
    tasks = speed_tasks(plan)
    pending = [one for one in tasks if read_seconds(one.path) is None]
    if pending:
        say(f"timing {counted(len(pending), 'model')}")
        doing("timing")
        worker = SpeedWorker(plan.settings, plan.recipe.timing)
        alone = _alone(_workers(plan).each.gpus)

        def note(_: SpeedTask, __: None) -> None:
            lock.raise_if_lost()

        run_tasks(worker, pending, workers=alone, on_done=note)
    return tuple(row for one in tasks for row in read_seconds(one.path) or ())


def _workers(plan: Plan) -> WorkerPlan:
    folders = {one.folder for one in plan.variants.each}
    largest = max(
        sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
        for folder in folders
    )
    wanted = None if plan.recipe.workers == "auto" else plan.recipe.workers
    return plan_photo_workers(cluster_nodes(), largest, None, wanted)


def _alone(gpus: float) -> WorkerPlan:
    """One worker that leaves no processor of its node to others."""
    nodes = [node for node in cluster_nodes() if node.get("GPU", 0) >= gpus]
    return WorkerPlan(1, WorkerRequest(int(max(node.get("CPU", 1) for node in nodes)), gpus))


def examples_step(plan: Plan, found: Evaluation) -> list[Example]:
    """The pictures of the report, a scale for each worker."""
    tasks = example_tasks(found.pictures, plan.given.photos) if plan.recipe.report else []
    if not tasks:
        return []
    worker = ExampleWorker(plan.settings, plan.variants.degradation, plan.variants.each)
    workers = _workers(plan)

    def note(_: ExampleTask, __: list[Example]) -> None: ...

    made = run_tasks(
        worker, tasks, workers=replace(workers, count=min(workers.count, len(tasks))), on_done=note
    )
    return [one for examples in made for one in examples]


def report_step(
    plan: Plan,
    found: Evaluation,
    timings: tuple[Seconds, ...],
    examples: Sequence[Example],
    measured: int,
) -> BenchmarkRecord:
    """Writes results, page and curves, and logs them to MLflow."""
    recipe, output = plan.recipe, plan.recipe.output
    write_results(output, recipe, found, timings)
    report = storage.join(output, REPORT) if recipe.report else None
    if report is not None:
        page = report_page(
            f"{', '.join(found.models)}: benchmark",
            recipe,
            found,
            examples,
            timings=timings,
        )
        storage.write_bytes(report, page)
    curves = [] if recipe.curve is None else write_curves(found, plan.variants.each, recipe.curve)
    doing("logging to MLflow")
    return BenchmarkRecord(
        found=found,
        timings=timings,
        chunks=len(plan.chunks),
        measured=measured,
        curves=tuple(map(str, curves)),
        report=report,
        mlflow=_track(recipe, found, timings),
    )


def _track(recipe: BenchmarkRecipe, found: Evaluation, timings: tuple[Seconds, ...]) -> str | None:
    """Logs the table, its files and where the models are from; where, or None."""
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
        )

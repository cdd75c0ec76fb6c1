"""The flow of a benchmark: plan, chunks of photos on Ray, timing, table, report. What was measured
is kept, and a run that was stopped goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock import BENCHMARK, OutputLock, output_lock
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
from training.evaluation.benchmark import Plan, gathered, plan_benchmark, speed_tasks
from training.evaluation.chunks import NOT_SHARED, Chunk
from training.evaluation.report.benchmark_results import Results, kept_results, write_report
from training.evaluation.report.example_worker import (
    ExampleTask,
    ExampleWorker,
    example_tasks,
    read_examples,
)
from training.evaluation.report.examples import Example
from training.evaluation.speed import SpeedTask, SpeedWorker, read_seconds
from training.run_dir.records import BenchmarkRecord, Evaluation, Seconds
from training.settings.benchmark import BenchmarkRecipe


@flow(name="benchmark", flow_run_name="{recipe.output}")
@reported
def benchmark(recipe: BenchmarkRecipe) -> BenchmarkRecord:
    """Models and baselines on the same photos; run it again to continue where it stopped.

    Args:
        recipe: The models, the photos, what is measured, and where the results are written.
    """
    start = time.monotonic()
    default_tracking_uri(recipe.output, worker=is_deployed())
    with output_lock(recipe.output, BENCHMARK) as lock:
        doing("planning")
        plan = task_step("plan", lambda: plan_benchmark(recipe))
        storage.remove_leftovers(recipe.output)
        pending = plan.pending()
        kept = kept_results(plan, pending)
        results = kept or make_results(plan, pending, lock)
        doing("writing and logging the results")
        record = task_step(
            "report",
            lambda: write_report(
                plan, results, measured=len(pending), nothing_left=kept is not None
            ),
        )
    show_benchmark(recipe, record, seconds=time.monotonic() - start)
    return record


def make_results(plan: Plan, pending: Sequence[Chunk], lock: OutputLock) -> Results:
    """Makes on Ray what is missing.

    Raises:
        FlowmapsrError: a part fails, or another benchmark has taken over the output.
    """
    with ray_cluster(cpus=1):
        task_step("measure", lambda: measure_step(plan, pending, lock))
        timings = task_step("time", lambda: time_step(plan, lock))
        found = gathered(plan)
        doing("drawing pictures")
        examples = task_step("pictures", lambda: examples_step(plan, found, lock))
    return Results(found, timings, examples)


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
    tasks = speed_tasks(plan)
    pending = [one for one in tasks if read_seconds(one.path) is None]
    if pending and plan.recipe.timing is not None:
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


def examples_step(plan: Plan, found: Evaluation, lock: OutputLock) -> tuple[Example, ...]:
    """The pictures of the report, a scale for each worker; those drawn before are kept."""
    tasks = example_tasks(plan, found.pictures)
    pending = [one for one in tasks if read_examples(one.path) is None]
    if pending:
        worker = ExampleWorker(plan.settings, plan.variants.degradation, plan.variants.each)
        workers = _workers(plan)

        def note(_: ExampleTask, __: None) -> None:
            lock.raise_if_lost()

        workers = replace(workers, count=min(workers.count, len(pending)))
        run_tasks(worker, pending, workers=workers, on_done=note)
    return tuple(example for one in tasks for example in _drawn(one))


def _drawn(task: ExampleTask) -> tuple[Example, ...]:
    examples = read_examples(task.path)
    if examples is None:
        raise FlowmapsrError(f"{task.path} {NOT_SHARED}")
    return examples

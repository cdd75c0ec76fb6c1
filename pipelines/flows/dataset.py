"""The flow from photos to dataset: plan, shards, finish. Every step skips what is already done."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from datagen.build.builder import ShardBuilder
from datagen.build.finish import RejectionLimit, finish, pending_tasks
from datagen.build.plan import plan_dataset
from datagen.build.survey import survey
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.tasks import Plan, ShardTask, TaskRecord
from datagen.io.lock import BUILD, OutputLock, output_lock
from datagen.pairs.listing import list_photos
from datagen.photos.sources import Listing
from datagen.settings import DatasetRecipe
from pipelines.cluster.actor_pool import run_tasks
from pipelines.cluster.chunk_map import map_chunks_on_cluster
from pipelines.cluster.prometheus import build_exported
from pipelines.cluster.ray_session import cluster_nodes, ray_cluster
from pipelines.cluster.workers import plan_workers
from pipelines.environment import default_tracking_uri
from pipelines.orchestration.dataset_page import build_progress, show_build
from pipelines.orchestration.guard import is_deployed, task_step
from pipelines.orchestration.run_page import progress_shown
from pipelines.orchestration.run_report import reported, say, tell
from pipelines.terminal.doing import doing
from pipelines.terminal.progress import BuildMeter, show_progress
from pipelines.terminal.text import counted
from training.monitoring.json_log import at_work_on
from training.tracking.dataset_run import log_dataset

log = logging.getLogger(__name__)


@flow(name="dataset", flow_run_name="{recipe.output}")
@reported
def build_dataset(recipe: DatasetRecipe) -> Manifest:
    """Photos to shards of latents with a manifest; run it again to continue where it stopped.

    Args:
        recipe: Which photos, what is made of them, and where the dataset is written.
    """
    listing = list_photos(recipe)
    complete = survey(recipe, listing).complete
    if complete is None:
        return build_listed(recipe, listing)
    tell("nothing new")
    return complete


def build_listed(recipe: DatasetRecipe, listing: Listing, *, take_over: bool = False) -> Manifest:
    """Builds the dataset of photos that are listed already.

    `take_over` takes it from the build that holds it, even a running one.

    Raises:
        FlowmapsrError: another build holds the dataset, a shard cannot be made, or too many photos
            are left out.
    """
    start = time.monotonic()
    at_work_on(dataset=recipe.output)
    with (
        output_lock(recipe.output, BUILD, take_over=take_over) as lock,
        ray_cluster(cpus=recipe.least_workers),
    ):
        doing("planning")
        plan = task_step(
            "plan",
            lambda: plan_dataset(recipe, listing=listing, map_chunks=map_chunks_on_cluster),
        )
        if other_files := listing.other_files():
            say(f"passed over, since they are no photos that can be read: {other_files}")
        before = load_manifest(recipe.output) if plan.base is not None else None
        meter = task_step("shards", lambda: shards_step(recipe, plan, lock))
        speed = meter.note()
        doing("finishing the dataset")
        manifest = task_step("finish", lambda: finish_step(plan, lock))
    seconds = time.monotonic() - start
    show_build(
        recipe.output,
        before=before,
        after=manifest,
        new_photos=len({photo.file.uri for task in plan.tasks for photo in task.photos}),
        made=meter,
        speed=speed,
        seconds=seconds,
        mlflow=_track(recipe, manifest, seconds),
    )
    return manifest


def shards_step(recipe: DatasetRecipe, plan: Plan, lock: OutputLock) -> BuildMeter:
    """Makes the tasks that are not done yet, on the connected Ray cluster; what it has made.

    Progress goes to the terminal, and to the log and the page of the flow run.

    Raises:
        FlowmapsrError: a shard cannot be made, too many photos are left out, or another build has
            taken over the dataset.
    """
    pending = pending_tasks(plan)
    missing = sum(task.num_samples for task in pending)
    meter = BuildMeter(
        total=plan.num_samples, done=plan.num_samples - missing, rejected=len(plan.rejected)
    )
    say(_plan_line(plan, pending))
    if not pending:
        return meter
    workers = plan_workers(recipe, cluster_nodes())
    builder = ShardBuilder(recipe, device=workers.device, threads=workers.each.cpus)
    limit = RejectionLimit(plan)
    with (
        show_progress("dataset", total=meter.total, unit="samples", done=meter.done) as progress,
        progress_shown(recipe.output, lambda: build_progress(meter)),
        build_exported(plan, pending) as export,
    ):

        def note(task: ShardTask, record: TaskRecord) -> None:
            meter.add(
                planned=task.num_samples,
                samples=record.num_samples,
                bytes=record.bytes,
                rejected=len(record.rejected),
            )
            progress.reach(meter.done, note=meter.note())
            export(task)
            lock.raise_if_lost()
            limit.check(record)

        run_tasks(builder, pending, workers=workers, on_done=note)
    return meter


def _plan_line(plan: Plan, pending: Sequence[ShardTask]) -> str:
    photos = {photo.file.uri for task in plan.tasks for photo in task.photos}
    done = len(plan.tasks) - len(pending)
    return (
        f"plan: {counted(plan.num_samples, 'sample')} of {counted(len(photos), 'new photo')} in "
        f"{counted(len(plan.tasks), 'task')}, {done} of them done before; "
        f"{counted(len(plan.rejected), 'photo')} left out already"
    )


def finish_step(plan: Plan, lock: OutputLock) -> Manifest:
    """Checks that every task is done and writes the manifest, which completes the dataset."""
    lock.renew()
    lock.raise_if_lost()
    return finish(plan)


def _track(recipe: DatasetRecipe, manifest: Manifest, seconds: float) -> str | None:
    """Logs to MLflow and returns where, if it was.

    The default database of a worker is a file beside the dataset.
    """
    if "://" not in recipe.output:
        default_tracking_uri(str(Path(recipe.output).parent), worker=is_deployed())
    elif is_deployed() and not os.environ.get("MLFLOW_TRACKING_URI"):
        log.warning("the worker has no MLFLOW_TRACKING_URI: the dataset is not logged to MLflow")
        return None
    doing("logging the dataset to MLflow")
    return log_dataset(recipe, manifest, seconds=seconds)

"""The three steps of a dataset build as plain functions, independent of Prefect: plan, make the
missing shards, finish."""

from __future__ import annotations

from datagen.build.builder import ShardBuilder
from datagen.build.finish import RejectionLimit, finish, pending_tasks
from datagen.build.plan import plan_dataset
from datagen.dataset.manifest import Manifest
from datagen.dataset.tasks import Plan, ShardTask, TaskRecord
from datagen.io.lock import OutputLock
from datagen.photos.sources import Listing
from datagen.settings import DatasetRecipe
from pipelines.cluster.actor_pool import run_shard_tasks
from pipelines.cluster.chunk_map import map_chunks_on_cluster
from pipelines.cluster.dataset_workers import plan_workers
from pipelines.cluster.ray_session import cluster_nodes
from pipelines.terminal.build_meter import BuildMeter, Watch


def plan_step(recipe: DatasetRecipe, listing: Listing) -> Plan:
    """Compares the listed photos with the dataset and decides which of them go into which task."""
    return plan_dataset(recipe, listing=listing, map_chunks=map_chunks_on_cluster)


def shards_step(recipe: DatasetRecipe, plan: Plan, lock: OutputLock, watch: Watch) -> None:
    """Makes the tasks that are not done yet, on the connected Ray cluster.

    Raises:
        FlowmapsrError: a shard cannot be made, too many photos are left out, or another build has
            taken over the dataset.
    """
    pending = pending_tasks(plan)
    if not pending:
        return
    workers = plan_workers(recipe, cluster_nodes())
    builder = ShardBuilder(recipe, device=workers.device, threads=workers.each.cpus)
    limit = RejectionLimit(plan)
    meter = _meter(plan, pending)
    with watch(meter) as refresh:

        def note(task: ShardTask, record: TaskRecord) -> None:
            meter.add(
                planned=task.num_samples,
                samples=record.num_samples,
                bytes=record.bytes,
                rejected=len(record.rejected),
            )
            refresh()
            lock.raise_if_lost()
            limit.check(record)

        run_shard_tasks(builder, pending, workers=workers, on_done=note)


def finish_step(plan: Plan, lock: OutputLock) -> Manifest:
    """Checks that every task is done and writes the manifest, which completes the dataset."""
    lock.renew()
    lock.raise_if_lost()
    return finish(plan)


def _meter(plan: Plan, pending: list[ShardTask]) -> BuildMeter:
    missing = sum(task.num_samples for task in pending)
    total = plan.num_samples
    return BuildMeter(total=total, done=total - missing, rejected=len(plan.rejected))

"""The three stations of a dataset build as plain functions: plan, make what is missing, finish.

Knows Ray through the pool, and no Prefect: with or without it, this is what is run.
"""

from __future__ import annotations

from datagen.build import RejectionLimit, ShardBuilder, finish
from datagen.manifest import Manifest, ShardRecord
from datagen.plan import Plan, ShardTask, pending_tasks, plan_dataset
from datagen.settings import DatasetRecipe
from pipelines.build_progress import BuildMeter, Made, Watch
from pipelines.cluster import ray_cluster
from pipelines.pool import run_shard_tasks


def plan_station(recipe: DatasetRecipe) -> Plan:
    """Lists the photos and decides which sample goes into which shard."""
    return plan_dataset(recipe)


def make_station(recipe: DatasetRecipe, plan: Plan, watch: Watch) -> None:
    """Makes the shards that are not there yet.

    Raises FlowmapsrError when a shard cannot be made or too many photos are left out.
    """
    pending = pending_tasks(plan)
    if not pending:
        return
    limit = RejectionLimit(plan)
    with ray_cluster(cpus=recipe.workers), watch(_meter(plan, pending)) as shown:

        def note(task: ShardTask, record: ShardRecord) -> None:
            shown(_made(task, record))
            limit.check(task, record)

        run_shard_tasks(ShardBuilder(recipe), pending, workers=recipe.workers, on_done=note)


def finish_station(plan: Plan) -> Manifest:
    """Checks that every shard is there and writes the manifest, which completes the dataset."""
    return finish(plan)


def _meter(plan: Plan, pending: list[ShardTask]) -> BuildMeter:
    total = sum(len(task.samples) for task in plan.tasks)
    missing = sum(len(task.samples) for task in pending)
    return BuildMeter(total=total, done=total - missing, rejected=len(plan.rejected))


def _made(task: ShardTask, record: ShardRecord) -> Made:
    return Made(
        planned=len(task.samples),
        samples=record.num_samples,
        bytes=record.bytes,
        rejected=len(task.samples) - record.num_samples,
    )

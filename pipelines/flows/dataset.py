"""The flow from photos to dataset: plan, shards, finish. Every step skips what is done already.

Knows where the work runs; what a shard holds is `datagen`'s business.
"""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from datagen.build import RejectionLimit, ShardBuilder, finish
from datagen.manifest import Manifest, ShardRecord
from datagen.plan import Plan, ShardTask, pending_tasks, plan_dataset
from datagen.settings import DatasetRecipe
from pipelines.cluster import ray_cluster
from pipelines.pool import run_shard_tasks
from pipelines.progress import show_progress


@flow(name="build-dataset", flow_run_name="{recipe.output}")
def build_dataset(recipe: DatasetRecipe) -> Manifest:
    """Photos to shards of latents with a manifest; run it again to continue where it stopped."""
    plan = plan_shards(recipe)
    make_shards(recipe, plan)
    return finish_dataset(plan)


@task(name="plan", cache_policy=NO_CACHE)
def plan_shards(recipe: DatasetRecipe) -> Plan:
    """Lists the photos and decides which sample goes into which shard."""
    return plan_dataset(recipe)


@task(name="shards", cache_policy=NO_CACHE)
def make_shards(recipe: DatasetRecipe, plan: Plan) -> None:
    """Makes the shards that are not there yet; this one task drives all of Ray's workers."""
    logger = get_run_logger()
    pending = pending_tasks(plan)
    total = len(plan.tasks)
    logger.info("%d shards, %d to make", total, len(pending))
    if not pending:
        return
    limit = RejectionLimit(plan)
    done = total - len(pending)
    with (
        show_progress("dataset", total=total, unit="shards", done=done) as progress,
        ray_cluster(cpus=recipe.workers),
    ):

        def note(task: ShardTask, record: ShardRecord) -> None:
            progress.advance()
            limit.check(task, record)

        run_shard_tasks(ShardBuilder(recipe), pending, workers=recipe.workers, on_done=note)


@task(name="finish", cache_policy=NO_CACHE)
def finish_dataset(plan: Plan) -> Manifest:
    """Checks that every shard is there and writes the manifest, which completes the dataset."""
    manifest = finish(plan)
    get_run_logger().info("%d samples in %d shards", manifest.num_samples, manifest.num_shards)
    return manifest

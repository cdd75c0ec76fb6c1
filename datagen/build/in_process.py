"""Builds a whole dataset in this process, without Ray and Prefect."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from datagen.build.builder import ShardBuilder
from datagen.build.finish import RejectionLimit, finish, pending_tasks
from datagen.build.plan import plan_dataset
from datagen.build.survey import survey
from datagen.dataset.manifest import Manifest
from datagen.dataset.tasks import ShardTask, TaskRecord
from datagen.io.lock import BUILD, output_lock
from datagen.settings import DatasetRecipe

RunTasks = Callable[[ShardBuilder, list[ShardTask]], Iterable[TaskRecord]]


def build_in_process(
    recipe: DatasetRecipe, *, device: str = "cpu", threads: int = 1, run_tasks: RunTasks = map
) -> Manifest:
    """Builds or extends a dataset, or finishes an interrupted build.

    Args:
        device: where the codec runs, such as `cuda`; a GPU may round latents differently.
        threads: how many threads read, decode and degrade beside it; any number gives the same
            bytes, and `datagen.build.memory.worker_memory` tells the memory.
        run_tasks: yields the records of finished tasks, such as the `map` of a pool of processes.
    """
    complete = survey(recipe).complete
    if complete is not None:
        return complete
    with output_lock(recipe.output, BUILD) as lock:
        plan = plan_dataset(recipe)
        builder = ShardBuilder(recipe, device=device, threads=threads)
        limit = RejectionLimit(plan)
        for record in run_tasks(builder, pending_tasks(plan)):
            limit.check(record)
            lock.raise_if_lost()
        lock.renew()
        lock.raise_if_lost()
        return finish(plan)

"""The flow from photos to dataset: plan, shards, finish. Every step skips what is done already.

Wraps the plain stations of `dataset_build` for Prefect's pages; a Prefect that fails in the middle
stops none of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import flow

from datagen.build.survey import survey
from datagen.dataset.manifest import Manifest
from datagen.io.lock import BUILD, place_lock
from datagen.photos.sources import Listing, list_sources
from datagen.settings import DatasetRecipe
from pipelines.cluster.ray_session import ray_cluster
from pipelines.flows.dataset_steps import finish_station, make_station, plan_station
from pipelines.orchestration.artifacts import progress_artifact, show_result
from pipelines.orchestration.guard import is_deployed, run_recipe, station
from pipelines.terminal.build_meter import BuildMeter, Made, Watch, watch_on_terminal
from training.tracking.dataset_run import log_dataset

log = logging.getLogger(__name__)

NAME = "build-dataset"
RUN_NAME = "{recipe.output}"


@flow(name=NAME, flow_run_name=RUN_NAME)
def build_dataset(recipe: DatasetRecipe) -> Manifest:
    """Photos to shards of latents with a manifest; run it again to continue where it stopped."""
    listing = list_sources(recipe.sources, exclude=recipe.output)
    return survey(recipe, listing).complete or _build(recipe, listing, take_over=False)


def run_build(recipe: DatasetRecipe, listing: Listing, *, take_over: bool = False) -> Manifest:
    """`build_dataset` for a command: once begun, it ends well even if Prefect does not.

    Unlike the flow it does not look first whether the dataset is complete already.

    Args:
        take_over: take the dataset from a build that holds it, whether it is alive or not.

    Raises FlowmapsrError when Prefect cannot even start the run, and as the stations do.
    """
    return run_recipe(
        recipe,
        lambda: _build(recipe, listing, take_over=take_over),
        name=NAME,
        run_name=RUN_NAME,
    )


def _build(recipe: DatasetRecipe, listing: Listing, *, take_over: bool) -> Manifest:
    with (
        place_lock(recipe.output, BUILD, take_over=take_over) as lock,
        ray_cluster(cpus=recipe.least_workers),
    ):
        plan = station("plan", lambda: plan_station(recipe, listing))
        station("shards", lambda: make_station(recipe, plan, lock, _watch(recipe.output)))
        manifest = station("finish", lambda: finish_station(plan, lock))
    show_result(manifest, recipe.output)
    _track(recipe, manifest)
    return manifest


def _track(recipe: DatasetRecipe, manifest: Manifest) -> None:
    if is_deployed() and not os.environ.get("MLFLOW_TRACKING_URI"):
        # The default, a database in the working folder, would vanish with the worker's folder.
        log.warning("the worker has no MLFLOW_TRACKING_URI: the dataset is not logged to MLflow")
        return
    log_dataset(recipe, manifest)


def _watch(dataset: str) -> Watch:
    @contextmanager
    def watch(meter: BuildMeter) -> Iterator[Callable[[Made], None]]:
        with watch_on_terminal(meter) as note, progress_artifact(meter, dataset):
            yield note

    return watch

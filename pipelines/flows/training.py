"""The flow from dataset to trained model: one task a stage, each skipping what is done already."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from datagen.manifest import dataset_of, load_manifest
from pipelines.cluster import ray_cluster
from pipelines.cluster_training import train_stage
from training.events import Artifact, Params, Tags, dataset_input, flatten
from training.preflight import check_run
from training.records import StageRecord
from training.run_folder import StageFolder, write_recipe
from training.settings import TrainingRecipe
from training.tracking import Tracker


@flow(name="train", flow_run_name="{recipe.output}")
def train(recipe: TrainingRecipe) -> list[StageRecord]:
    """Trains every stage in order; run it again to continue from the last checkpoint."""
    prepare_run(recipe)
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    tracker = open_parent_run(recipe)
    try:
        with ray_cluster(cpus=recipe.workers) if _unfinished(recipe) else nullcontext():
            records = [run_stage(recipe, stage.name) for stage in recipe.stages]
        status = "FINISHED"
    finally:
        tracker.close(status)
    return records


def _unfinished(recipe: TrainingRecipe) -> bool:
    folders = (StageFolder(Path(recipe.output), stage.name) for stage in recipe.stages)
    return any(folder.record() is None for folder in folders)


@task(name="prepare", cache_policy=NO_CACHE)
def prepare_run(recipe: TrainingRecipe) -> None:
    """Checks dataset, sources and stages, and that the folder belongs to this recipe."""
    manifest = check_run(recipe)
    write_recipe(recipe)
    get_run_logger().info("%d samples in %d shards", manifest.num_samples, manifest.num_shards)


def open_parent_run(recipe: TrainingRecipe) -> Tracker:
    """The MLflow run above the stages' runs, with the resolved recipe."""
    run = Path(recipe.output)
    manifest = load_manifest(recipe.manifest)
    tracker = Tracker(run, experiment=recipe.experiment)
    tracker.write(Params(values=flatten(recipe.model_dump(mode="json", exclude={"stages"}))))
    tracker.write(
        Tags(
            values={
                "dataset.digest": manifest.digest,
                "recipe.digest": recipe.digest(),
                "stages": ", ".join(stage.name for stage in recipe.stages),
            }
        )
    )
    tracker.write(dataset_input(manifest, dataset_of(recipe.manifest)))
    tracker.write(Artifact(path=str(run / "recipe.json")))
    return tracker


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE)
def run_stage(recipe: TrainingRecipe, name: str) -> StageRecord:
    """Launches the DeepSpeed workers of one stage through Ray Train."""
    record = train_stage(recipe, name)
    get_run_logger().info("stage %s: %d steps, %d images", name, record.steps, record.images_seen)
    return record

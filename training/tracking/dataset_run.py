"""Logs a dataset that was just built to MLflow: recipe, counts, digest and pictures, in one run.

A tracking server that is slow or down costs a warning and a few seconds, never the dataset.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from datagen.dataset.layout import HISTOGRAMS, PREVIEW
from datagen.dataset.manifest import Manifest
from datagen.errors import first_line
from datagen.io import storage
from datagen.records import flatten
from datagen.settings import DatasetRecipe
from training.tracking.events import Artifact, Event, Metrics, Params, Tags, dataset_input
from training.tracking.mlflow_client import log_run, tracking_uri

log = logging.getLogger(__name__)

EXPERIMENT = "datasets"
SERVER_SECONDS = 15.0
"""How long the end of a build waits for a server, which may be down."""
FILE_SECONDS = 120.0
"""How long it waits for a database file, whose tables may have to be created first."""
PICTURES = (PREVIEW, HISTOGRAMS)


def log_dataset(recipe: DatasetRecipe, manifest: Manifest) -> None:
    """Logs a finished dataset as a run with that dataset as its input."""
    thread = threading.Thread(
        target=_log, args=(recipe, manifest), name="mlflow-dataset", daemon=True
    )
    thread.start()
    seconds = FILE_SECONDS if tracking_uri().startswith("sqlite:") else SERVER_SECONDS
    thread.join(timeout=seconds)
    if thread.is_alive():
        log.warning("MLflow at %s does not answer; the dataset is not logged", tracking_uri())


def _log(recipe: DatasetRecipe, manifest: Manifest) -> None:
    name = recipe.output.rstrip("/").rsplit("/", 1)[-1]
    try:
        with TemporaryDirectory(prefix="flowmapsr-") as folder:
            events = [
                *dataset_events(recipe, manifest),
                *_files(recipe.output, manifest, Path(folder)),
            ]
            log_run(events, experiment=EXPERIMENT, name=name)
    # Whatever MLflow or storage raises, the dataset is complete.
    except Exception as error:
        log.warning(
            "MLflow at %s rejects the dataset (%s); it is complete but not logged",
            tracking_uri(),
            first_line(error),
        )


def dataset_events(recipe: DatasetRecipe, manifest: Manifest) -> list[Event]:
    """Parameters, tags and counts of a dataset, without its files."""
    counts = {
        "num_samples": float(manifest.num_samples),
        "num_shards": float(manifest.num_shards),
        "bytes": float(manifest.bytes),
        "rejected": float(manifest.rejected.count),
    }
    tags = {
        "dataset.digest": manifest.digest,
        "recipe.digest": manifest.recipe_digest,
        "output": recipe.output,
    }
    return [
        Params(values=flatten(recipe.model_dump(mode="json"))),
        Tags(values=tags),
        Metrics(step=0, time_ms=int(time.time() * 1000), values=counts),
        dataset_input(manifest, recipe.output),
    ]


def _files(dataset: str, manifest: Manifest, folder: Path) -> list[Event]:
    """Pictures and the manifest without its list of shards, copied to where MLflow can read."""
    summary = manifest.model_dump(mode="json", exclude={"shards"})
    paths = [folder / "manifest-summary.json"]
    paths[0].write_text(json.dumps(summary, indent=2))
    for name in PICTURES:
        uri = storage.join(dataset, name)
        if storage.exists(uri):
            paths.append(folder / name)
            paths[-1].write_bytes(storage.read_bytes(uri))
    return [Artifact(path=str(path)) for path in paths]

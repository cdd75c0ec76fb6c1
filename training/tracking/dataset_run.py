"""Logs a dataset that was just built to MLflow: recipe, counts, digest and pictures, in one run.

A tracking server that is slow or down costs a warning and a few seconds, never the dataset.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from datagen.dataset.layout import HISTOGRAMS, PREVIEW
from datagen.dataset.manifest import Dataset, Manifest
from datagen.io import storage
from datagen.io.redaction import redacted
from datagen.settings import DatasetRecipe
from training.tracking.events import Artifact, DatasetInput, Event, Metrics, Picture, described
from training.tracking.store.address import mlflow_installed, tracking_uri
from training.tracking.store.dataset_links import EXPERIMENT
from training.tracking.store.mlflow_run import log_run
from training.tracking.unsent import error_reason

log = logging.getLogger(__name__)

SERVER_SECONDS, FILE_SECONDS = 15.0, 120.0
"""How long the end of a build waits for a server, which may be down, or for a database file, whose
tables may have to be created first."""


def log_dataset(recipe: DatasetRecipe, manifest: Manifest, *, seconds: float) -> str | None:
    """Logs a finished dataset, and how long its build took, as a run with that dataset as input.

    Returns where the run is, as `log_run` does; None if it was not logged.
    """
    if not mlflow_installed():
        log.warning("MLflow is not installed: the dataset is complete but not logged")
        return None
    where: list[str] = []
    thread = threading.Thread(target=_log, args=(recipe, manifest, seconds, where), daemon=True)
    thread.start()
    thread.join(FILE_SECONDS if tracking_uri().startswith("sqlite:") else SERVER_SECONDS)
    if thread.is_alive():
        message = "MLflow at %s does not answer: the dataset is complete but not logged"
        log.warning(message, redacted(tracking_uri()))
    return where[0] if where else None


def _log(recipe: DatasetRecipe, manifest: Manifest, seconds: float, where: list[str]) -> None:
    """Adds to `where` the run that it made."""
    dataset = Dataset(manifest, recipe.output)
    buckets: Counter[str] = Counter()
    for shard in manifest.shards:
        buckets[shard.bucket] += shard.num_samples
    tags = {
        **{"role": "dataset", "recipe.digest": manifest.recipe_digest, "output": recipe.output},
        "buckets": ", ".join(f"{bucket}: {count}" for bucket, count in buckets.most_common()),
        "left_out": ", ".join(f"{n} x {why}" for why, n in manifest.rejected.by_reason.items()),
    }
    counts = {
        "num_samples": float(manifest.num_samples),
        "num_shards": float(manifest.num_shards),
        "bytes": float(manifest.bytes),
        "rejected": float(manifest.rejected.count),
        "seconds": seconds,
    }
    try:
        with TemporaryDirectory(prefix="flowmapsr-") as folder:
            events = [
                *described(recipe.model_dump(mode="json"), [DatasetInput.of(dataset)], tags),
                Metrics(step=0, time_ms=int(time.time() * 1000), values=counts),
                *_files(dataset, Path(folder)),
            ]
            # Two parts of the path: many datasets are called `dataset`.
            name = "/".join(PurePosixPath(recipe.output).parts[-2:])
            where.append(log_run(events, experiment=EXPERIMENT, name=name))
    # Whatever MLflow or storage raises, the dataset is complete.
    except Exception as error:
        message = "MLflow at %s rejects the dataset (%s): it is complete but not logged"
        log.warning(message, redacted(tracking_uri()), error_reason(error))


def _files(dataset: Dataset, folder: Path) -> list[Event]:
    """Pictures and the manifest without its list of shards, copied to where MLflow can read."""
    summary = dataset.manifest.model_dump(mode="json", exclude={"shards"})
    (folder / "manifest-summary.json").write_text(json.dumps(summary, indent=2))
    for name in (PREVIEW, HISTOGRAMS):
        uri = storage.join(dataset.root, name)
        if storage.exists(uri):
            (folder / name).write_bytes(storage.read_bytes(uri))
    files: list[Event] = [Artifact(path=str(path)) for path in folder.iterdir()]
    # The pictures again, so that datasets are compared by them.
    pictures = (Picture(key=path.stem, step=0, path=str(path)) for path in folder.glob("*.png"))
    return [*files, *pictures]

"""Which MLflow runs belong to a run folder, and where they are seen, as its `mlflow.json` tells.

Asks no server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from datagen.io.redaction import redacted
from datagen.records import FrozenModel
from training.run_dir.best_effort import read_or_warn
from training.run_dir.paths import RunPaths
from training.run_dir.place import Place, is_copy, place_of
from training.tracking.store.address import is_server, public_uri

PublicUri = Annotated[str, AfterValidator(public_uri)]
"""Files of earlier versions may hold a password."""


class RunNames(FrozenModel):
    """`<run>/mlflow.json`: the MLflow runs that belong to a run folder."""

    tracking_uri: PublicUri
    experiment: str
    parent: str
    stages: dict[str, str] = {}
    review: str | None = None
    """Address of the page that compares the training with others, once a server has one."""
    place: Place | None = None
    """Of the folder; null in files of older versions."""
    copied_from: str = ""
    """Folder and MLflow run of the training that this one is a copy of."""


def run_page(run: Path) -> str | None:
    """Address of a run folder's page, where a server has one."""
    names = read_names(run)
    if names is None or not is_server(names.tracking_uri):
        return None
    return page_of(names.tracking_uri, names.parent)


def where_tracked(run: Path) -> str | None:
    """Where the metrics of a run folder are: its page, or its run in a store without pages; None
    before MLflow has them."""
    names = read_names(run)
    if names is None:
        return None
    store = redacted(names.tracking_uri)
    return run_page(run) or f"MLflow run {names.parent} of {names.experiment!r} in {store}"


def review_page(run: Path) -> str | None:
    """Address of the page that compares a run folder's training with others, where that is known;
    else `flowmapsr review` makes it."""
    names = read_names(run)
    return None if names is None else names.review


def model_in_mlflow(run: Path, stage: str) -> str | None:
    """What `mlflow.register_model` takes for the model of a stage, if MLflow has the stage."""
    names = read_names(run)
    run_id = None if names is None else names.stages.get(stage)
    return run_id and f"runs:/{run_id}/{stage}"


def page_of(uri: str, run_id: str) -> str:
    """Address of a run's page on a server."""
    # Without the experiment: MLflow would open it in the view that the browser used last, by
    # default the one for language models.
    return f"{redacted(uri).rstrip('/')}/#/runs/{run_id}"


def read_names(run: Path) -> RunNames | None:
    """The MLflow runs of a run folder; None where it has none, or only those of the training that
    it is a copy of."""
    names = written_names(run)
    return None if original_of(run) is not None else names


def original_of(run: Path) -> str | None:
    """The folder that a run folder is a copy of, until it has MLflow runs of its own."""
    names = written_names(run)
    place = None if names is None else names.place
    return place.path if place is not None and is_copy(place, place_of(run)) else None


def written_names(run: Path) -> RunNames | None:
    """What `mlflow.json` says, be the folder a copy or not."""
    return read_or_warn(RunPaths(run).mlflow, RunNames, remedy="its metrics go to a new MLflow run")

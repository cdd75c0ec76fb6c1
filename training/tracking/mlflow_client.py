"""The MLflow runs that belong to a run folder: finds or creates them and sends them events.

Beside the model registry, this is the only code that calls MLflow.
"""

from __future__ import annotations

import itertools
import logging
import os
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from filelock import FileLock
from pydantic import AfterValidator

from datagen.io import storage
from datagen.io.redaction import redacted
from datagen.records import FrozenModel
from training.run_dir.best_effort import read_or_warn
from training.run_dir.paths import RunPaths, run_name
from training.run_dir.place import Place, give_id, is_copy, place_of
from training.tracking import events as logged
from training.tracking.database import prepare_database
from training.tracking.dataset_links import log_dataset_input
from training.tracking.events import End, Event, KeptCheckpoints, Metrics, Model
from training.tracking.journal import forget_sent
from training.tracking.logged_models import keep_checkpoints, send_model
from training.tracking.store import database_file, is_server, public_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

MAX_PARAMS, MAX_METRICS = 100, 1000
"""MLflow's limits for one request."""
MAX_TAG, MAX_VALUE = 5000, 6000
"""Characters that every MLflow store keeps of a tag and a parameter."""
NOW, FAILURE = "now.", "failure"
"""Prefix of the tags with settings that the last start changed; and the tag with the reason why a
run failed, removed when it continues."""
ENDED = "ended"
"""The tag that says why a stage takes no more steps, removed when it does."""
NO_SUCH_REQUEST = "ENDPOINT_NOT_FOUND"
PARENT = "mlflow.parentRunId"
FOLDER = "folder"
"""The tag with the path of a training's folder, the only one that sends to its run."""
DELETED = "the MLflow run of %s was deleted there: a new one is made and gets all that was logged"


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
    return _page(names.tracking_uri, names.parent)


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


def _page(uri: str, run_id: str) -> str:
    # Without the experiment: MLflow would open it in the view that the browser used last, by
    # default the one for language models.
    return f"{redacted(uri).rstrip('/')}/#/runs/{run_id}"


def read_names(run: Path) -> RunNames | None:
    """The MLflow runs of a run folder; None where it has none, or only those of the training that
    it is a copy of."""
    names = _written_names(run)
    return None if original_of(run) is not None else names


def original_of(run: Path) -> str | None:
    """The folder that a run folder is a copy of, until it has MLflow runs of its own."""
    names = _written_names(run)
    place = None if names is None else names.place
    return place.path if place is not None and is_copy(place, place_of(run)) else None


def _written_names(run: Path) -> RunNames | None:
    return read_or_warn(RunPaths(run).mlflow, RunNames, remedy="its metrics go to a new MLflow run")


class MlflowRun:
    """Sends events to one MLflow run; creates experiment, parent and child when first needed."""

    def __init__(self, run: Path, *, experiment: str, stage: str | None, label: str | None) -> None:
        """
        Args:
            label: what a stage's run is called, after the name of its parent; null its own name.
        """
        self.run, self.experiment, self.stage, self.label = run, experiment, stage, label

    def run_id(self) -> str:
        """The run that `send` sends to; a new one where the store has none of this folder, or only
        one that was deleted there."""
        return self._connected[1]

    def send(self, events: list[Event]) -> None:
        try:
            _send(*self._connected, events)
        except Exception:
            # Looked for again before the next try: it may just have been deleted in MLflow.
            self.__dict__.pop("_connected", None)
            raise

    @cached_property
    def _connected(self) -> tuple[MlflowClient, str]:
        # Launcher and workers may create the runs at the same time, e.g. when a server is back.
        with FileLock(RunPaths(self.run).mlflow_lock):
            client = new_client()
            return client, self._find_or_create(client)

    def _find_or_create(self, client: MlflowClient) -> str:
        names = self._names_of_this_place(client)
        if self.stage is None:
            return names.parent
        known = names.stages.get(self.stage)
        if known is not None and _active_run(client, known):
            return known
        if known is not None:
            log.warning(DELETED, f"stage {self.stage!r} of {self.run}")
        parent = client.get_run(names.parent).info
        tags = {"role": "stage", "stage": self.stage, PARENT: names.parent, **_origin(names)}
        name = f"{parent.run_name} · {self.label or self.stage}"
        superseded = [one for one in names.stages if one.startswith(f"{self.stage}.")]
        if superseded:
            name += f" ({len(superseded) + 1})"
        child = client.create_run(parent.experiment_id, run_name=name, tags=tags).info.run_id
        self._remember(names.model_copy(update={"stages": {**names.stages, self.stage: child}}))
        return child

    def _names_of_this_place(self, client: MlflowClient) -> RunNames:
        """The runs of the folder as it lies here: a copy of a run's folder has others."""
        names = _written_names(self.run)
        give_id(self.run, None if names is None else names.place)
        place = place_of(self.run)
        if names is None:
            return self._new_parent(client, {})
        if names.place is not None and is_copy(names.place, place):
            return self._copied(client, names, names.place.path)
        found = _active_run(client, names.parent) if _is_store_of(client, names) else None
        if found is None and names.tracking_uri != public_uri(tracking_uri()):
            return self._new_parent(client, {})
        if found is None:
            log.warning(DELETED, self.run)
            return self._new_parent(client, names.stages)
        before = place.path if names.place is None else names.place.path
        claimed = found.data.tags.get(FOLDER, before)
        if claimed not in (before, place.path):  # by another copy of a folder that is gone
            return self._copied(client, names, claimed)
        if names.place is None or names.place.path != place.path:
            client.set_tag(names.parent, FOLDER, place.path)
            now = {"place": place, "tracking_uri": tracking_uri()}
            names = names.model_copy(update=now)
            self._remember(names)
        return names

    def _copied(self, client: MlflowClient, names: RunNames, origin: str) -> RunNames:
        log.warning("%s is a copy of %s: it gets MLflow runs of its own", self.run, origin)
        forget_sent(self.run)
        return self._new_parent(client, {}, copied_from=f"{origin} (MLflow run {names.parent})")

    def rename_stage(self, kept: str) -> None:
        """The stage's MLflow run belongs to the stage's folder with another name."""
        assert self.stage is not None
        with FileLock(RunPaths(self.run).mlflow_lock):
            names = _written_names(self.run)
            if names is not None and self.stage in names.stages:
                stages = {
                    kept if name == self.stage else name: run for name, run in names.stages.items()
                }
                self._remember(names.model_copy(update={"stages": stages}))

    def _new_parent(
        self, client: MlflowClient, stages: dict[str, str], *, copied_from: str = ""
    ) -> RunNames:
        """
        Args:
            stages: the runs of an earlier parent.
        """
        experiment_id = _experiment_id(client, self.experiment)
        name = _free_name(client, experiment_id, run_name(self.run))
        place = place_of(self.run)
        tags = {"role": "training", FOLDER: place.path}
        kept = {stage: child for stage, child in stages.items() if _active_run(client, child)}
        names = RunNames(
            tracking_uri=tracking_uri(),
            experiment=self.experiment,
            parent="",
            stages=kept,
            place=place,
            copied_from=copied_from,
        )
        tags |= _origin(names)
        parent = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        for child in kept.values():
            client.set_tag(child, PARENT, parent)
        names = names.model_copy(update={"parent": parent})
        self._remember(names)
        return names

    def _remember(self, names: RunNames) -> None:
        path = RunPaths(self.run).mlflow
        storage.write_bytes(str(path), names.model_dump_json(indent=2).encode())


def _origin(names: RunNames) -> dict[str, str]:
    """The tag of a copy's runs."""
    return {"copied_from": names.copied_from} if names.copied_from else {}


def _is_store_of(client: MlflowClient, names: RunNames) -> bool:
    """Whether this is the store of the runs, or their database file, moved."""
    if names.tracking_uri == public_uri(tracking_uri()):
        return True
    file = database_file(names.tracking_uri)
    return file is not None and not file.is_file()


def _active_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run of the store; None if it has none, or one that is marked as deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _free_name(client: MlflowClient, experiment_id: str, name: str) -> str:
    """The name, numbered if the experiment has a run of that name: in the legend of a chart names
    are all that tells trainings apart."""
    if '"' in name:
        return name  # cannot be searched for
    found = client.search_runs([experiment_id], f'attributes.run_name LIKE "{name}%"')
    taken = {run.info.run_name for run in found}
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)


def log_run(events: list[Event], *, experiment: str, name: str) -> str:
    """Logs a complete MLflow run at once; raises what MLflow raises, within seconds when the server
    is down. Returns the address of its page, or where there is no server its ID and store."""
    client = new_client()
    run = client.create_run(_experiment_id(client, experiment), run_name=name)
    run_id, uri = run.info.run_id, tracking_uri()
    _send(client, run_id, [*events, End(status="FINISHED")])
    if is_server(uri):
        return _page(uri, run_id)
    return f"{run_id} in {redacted(uri)}"


def new_client(uri: str | None = None) -> MlflowClient:
    """A client of a store, else of the one in use, that waits seconds for a server, not minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # They would mix with the JSON that a script reads from stdout.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient  # sets up its loggers, so they are changed below

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # repeats what is raised
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    uri = uri or tracking_uri()
    if (path := database_file(uri)) is not None:
        prepare_database(path)
    return MlflowClient(uri)


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    path, artifacts = database_file(tracking_uri()), None
    if path is not None:
        # Beside the database; MLflow's default is the worker's working folder.
        artifacts = (path.parent / "artifacts").as_uri()
    # Shows MLflow's table of training runs. A switch in its sidebar, as in 3.17, overrides it.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return client.create_experiment(name, artifact_location=artifacts, tags=tags)


def _send(client: MlflowClient, run_id: str, events: list[Event]) -> None:
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    metrics = [
        Metric(name, value, event.time_ms, event.step)
        for event in events
        if isinstance(event, Metrics)
        for name, value in event.values.items()
    ]
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
    for event in events:
        # What MLflow will never accept must not block all later events.
        try:
            _send_one(client, run_id, event)
        except FileNotFoundError as error:
            log.warning("%s is missing and is not sent to MLflow", error.filename)
        except MlflowException as error:
            # Of a deleted run nothing is accepted, and all goes to the next one.
            if isinstance(event, Model | KeptCheckpoints) and error.error_code == NO_SUCH_REQUEST:
                _say_without_models()
                continue
            if error.error_code != "INVALID_PARAMETER_VALUE" or _active_run(client, run_id) is None:
                raise
            log.warning("MLflow refuses an event, which is skipped: %s", error)


@cache
def _say_without_models() -> None:
    log.warning(
        "MLflow at %s is older than 3.0 and has no models of runs: checkpoints and stages' models "
        "are not listed there, all else is",
        redacted(tracking_uri()),
    )


def _send_one(client: MlflowClient, run_id: str, event: Event) -> None:
    from mlflow.entities import Param, RunTag

    match event:
        case logged.Params():
            data = client.get_run(run_id).data
            values = {name: value[:MAX_VALUE] for name, value in event.values.items()}
            new = {name: value for name, value in values.items() if name not in data.params}
            params = [Param(*item) for item in new.items()]
            for start in range(0, len(params), MAX_PARAMS):
                client.log_batch(run_id, params=params[start : start + MAX_PARAMS])
            # A parameter keeps its first value; a later start's changes become tags.
            changed = [
                RunTag(NOW + name, value)
                for name, value in values.items()
                if data.params.get(name, value) != value or NOW + name in data.tags
            ]
            client.log_batch(run_id, tags=changed)
        case logged.Tags():
            tags = [RunTag(name, value[:MAX_TAG]) for name, value in event.values.items()]
            client.log_batch(run_id, tags=tags)
        case logged.Picture():
            from PIL import Image

            client.log_image(run_id, Image.open(event.path), key=event.key, step=event.step)
        case logged.Artifact():
            client.log_artifact(run_id, event.path, event.folder)
        case logged.DatasetInput():
            log_dataset_input(client, run_id, event)
        case logged.Model():
            send_model(client, run_id, event)
        case logged.KeptCheckpoints():
            keep_checkpoints(client, run_id, event)
        case logged.Begin():
            client.update_run(run_id, status="RUNNING")
            for tag in {FAILURE, ENDED} & client.get_run(run_id).data.tags.keys():
                client.delete_tag(run_id, tag)
        case End():
            if event.reason is not None:
                client.set_tag(run_id, FAILURE, event.reason)
            client.set_terminated(run_id, event.status)

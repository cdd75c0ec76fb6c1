"""The MLflow runs of a run folder: finds or creates them, and sends them events.

What an event becomes there, `send.py` knows.
"""

from __future__ import annotations

import itertools
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from datagen.io import storage
from datagen.io.redaction import redacted
from training.run_dir.paths import RunPaths, run_name
from training.run_dir.place import give_id, is_copy, place_of
from training.tracking.events import End, Event
from training.tracking.journal import forget_sent
from training.tracking.store.address import database_file, is_server, public_uri, tracking_uri
from training.tracking.store.client import active_run, experiment_id_of, new_client
from training.tracking.store.run_names import RunNames, page_of, written_names
from training.tracking.store.send import send_events

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
FOLDER = "folder"
"""The tag with the path of a training's folder, the only one that sends to its run."""
CONTENT = "content.digest"
"""The tag of a run that was logged at once, with the digest of what it holds."""
DELETED = "the MLflow run of %s was deleted there: a new one is made and gets all that was logged"


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
            send_events(*self._connected, events)
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
        if known is not None and active_run(client, known):
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
        names = written_names(self.run)
        give_id(self.run, None if names is None else names.place)
        place = place_of(self.run)
        if names is None:
            return self._new_parent(client, {})
        if names.place is not None and is_copy(names.place, place):
            return self._copied(client, names, names.place.path)
        found = active_run(client, names.parent) if _is_store_of(client, names) else None
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
            names = written_names(self.run)
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
        experiment_id = experiment_id_of(client, self.experiment)
        name = _free_name(client, experiment_id, run_name(self.run))
        place = place_of(self.run)
        tags = {"role": "training", FOLDER: place.path}
        kept = {stage: child for stage, child in stages.items() if active_run(client, child)}
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


def _free_name(client: MlflowClient, experiment_id: str, name: str) -> str:
    """The name, numbered if the experiment has a run of that name: in the legend of a chart names
    are all that tells trainings apart."""
    if '"' in name:
        return name  # cannot be searched for
    found = client.search_runs([experiment_id], f'attributes.run_name LIKE "{name}%"')
    taken = {run.info.run_name for run in found}
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)


def log_run(events: list[Event], *, experiment: str, name: str, content: str | None = None) -> str:
    """Logs a complete MLflow run at once; raises what MLflow raises, within seconds when the server
    is down. Returns the address of its page, or where there is no server its ID and store.

    Args:
        content: a digest of the events, by which an earlier run of them is found and kept.
    """
    client = new_client()
    experiment_id, uri = experiment_id_of(client, experiment), tracking_uri()
    run_id = None if content is None else _run_of(client, experiment_id, content)
    if run_id is None:
        tags = None if content is None else {CONTENT: content}
        run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        send_events(client, run_id, [*events, End(status="FINISHED")])
    if is_server(uri):
        return page_of(uri, run_id)
    return f"{run_id} in {redacted(uri)}"


def _run_of(client: MlflowClient, experiment_id: str, content: str) -> str | None:
    """The run that has all of it: one whose sending was cut short never ended."""
    wanted = f"tags.`{CONTENT}` = '{content}' AND attributes.status = 'FINISHED'"
    found = client.search_runs([experiment_id], wanted, max_results=1)
    return found[0].info.run_id if found else None

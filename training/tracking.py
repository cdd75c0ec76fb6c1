"""Metrics, pictures and files of a run to MLflow, through a journal on disk that is the truth.

Writing an event appends a line to `tracking.jsonl`; a thread sends the lines to MLflow and
remembers how far it came. A tracking server that is slow or gone therefore never stops or slows
training: what could not be sent waits in the journal and is sent by the next start of the same
command. Knows nothing of training.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock
from pydantic import ValidationError

from datagen import storage
from datagen.fields import Settings
from training.events import (
    EVENT,
    Artifact,
    DatasetInput,
    End,
    Event,
    Metrics,
    Params,
    Picture,
    Tags,
)
from training.secondary import append_whole, secondary

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

BATCH = 500
MAX_PARAMS = 100
"""MLflow takes no more at once."""
MAX_DIGEST = 36
"""Characters that MLflow keeps of a dataset's digest; the whole one is a tag."""
RETRY_SECONDS = 5.0
NAMES_FILE, LOCK_FILE = "mlflow.json", ".mlflow.lock"


class RunNames(Settings):
    """`<run>/mlflow.json`: the MLflow runs that belong to a run folder."""

    tracking_uri: str
    experiment: str
    parent: str
    stages: dict[str, str] = {}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


class Tracker:
    """Journal and sender of one MLflow run: the parent of a training run (stage None) or of one
    stage."""

    def __init__(self, run: Path, *, experiment: str, stage: str | None = None) -> None:
        home = run if stage is None else run / "stages" / stage
        home.mkdir(parents=True, exist_ok=True)
        self._journal = home / "tracking.jsonl"
        self._offset = home / "tracking.sent"
        self._target = MlflowTarget(run, experiment=experiment, stage=stage)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._step = 0
        self._unwritten = ""
        """Events that found no room on the disk."""
        self._sent = self._sent_before()
        _drop_torn_line(self._journal)
        self._thread = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Appends an event; returns at once whatever the state of the server.

        On a full disk it waits for the next call.
        """
        with self._lock:
            self._unwritten += event.model_dump_json() + "\n"
            with secondary(str(self._journal)):
                append_whole(self._journal, self._unwritten)
                self._unwritten = ""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._step = step
        self.write(Metrics(step=step, time_ms=int(time.time() * 1000), values=values))

    def metrics_now(self, values: dict[str, float]) -> None:
        """Metrics that belong to a time, not to a step: they stand at the last one reported."""
        self.metrics(self._step, values)

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], *, wait: float = 60.0) -> bool:
        """Ends the run and waits up to `wait` seconds for the journal to be sent.

        Returns:
            Whether everything was sent; what was not stays in the journal for the next start.
        """
        self.write(End(status=status))
        self._closing.set()
        self._thread.join(timeout=wait)
        if self._unwritten:
            log.warning("the last metrics are lost: %s cannot be written", self._journal)
        sent = not self._unwritten and self._sent == self._journal.stat().st_size
        if not sent and not self._unwritten:
            log.warning(
                "MLflow at %s did not take all metrics; they wait in %s and are sent when "
                "the same command "
                "runs again",
                tracking_uri(),
                self._journal,
            )
        return sent

    def _send_all(self) -> None:
        warned = False
        while True:
            closing = self._closing.is_set()
            try:
                if not self._send_some() and closing:
                    return
                pause = 0.2
            # The edge of this thread: whatever MLflow raises must not end tracking, let alone
            # training.
            except Exception as error:
                if not warned:
                    log.warning(
                        "MLflow at %s does not answer (%s); training goes on and metrics are kept",
                        tracking_uri(),
                        error,
                    )
                warned, pause = True, RETRY_SECONDS
                if closing:
                    return
            self._closing.wait(timeout=pause)

    def _send_some(self) -> bool:
        """Sends up to BATCH journal lines; False when there were none."""
        start = self._sent
        if not self._journal.exists():
            return False
        with self._journal.open("rb") as file:
            file.seek(start)
            lines = [
                line for line in (file.readline() for _ in range(BATCH)) if line.endswith(b"\n")
            ]
        if not lines:
            return False
        self._target.send(_whole_events(lines))
        self._sent = start + sum(map(len, lines))
        with secondary(str(self._offset)):
            storage.write_bytes(str(self._offset), str(self._sent).encode())
        return True

    def _sent_before(self) -> int:
        """Bytes of the journal that an earlier start has sent; all are sent again when it is not
        known, which MLflow takes for the same."""
        if not self._offset.exists() or not self._journal.exists():
            return 0
        told = self._offset.read_bytes()
        sent = int(told) if told.isdigit() else 0
        return sent if sent <= self._journal.stat().st_size else 0


def _whole_events(lines: list[bytes]) -> list[Event]:
    """What the lines say; those that a lost disk left torn are passed over."""
    events = []
    for line in lines:
        try:
            events.append(EVENT.validate_json(line))
        except ValidationError:
            log.warning("a torn line of a journal is not sent: %.80r", line)
    return events


def _drop_torn_line(journal: Path) -> None:
    """Cuts off what a killed process left of a last line, so that the next event starts a line of
    its own."""
    if journal.exists():
        data = journal.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(journal, whole)


class MlflowTarget:
    """Sends events to one MLflow run; creates experiment, parent and child when first needed."""

    def __init__(self, run: Path, *, experiment: str, stage: str | None) -> None:
        self.run = run
        self.experiment = experiment
        self.stage = stage
        self._client: MlflowClient | None = None
        self._run_id = ""

    def send(self, events: list[Event]) -> None:
        _send(*self._connect(), events)

    def _connect(self) -> tuple[MlflowClient, str]:
        if self._client is None:
            client = _new_client()
            # Launcher and workers may meet a server that has just come back at the same time.
            with FileLock(self.run / LOCK_FILE):
                self._run_id = self._find_or_create(client)
            client.update_run(self._run_id, status="RUNNING")
            self._client = client
        return self._client, self._run_id

    def _find_or_create(self, client: MlflowClient) -> str:
        names = self._known(client) or self._new_parent(client)
        if self.stage is None:
            return names.parent
        if self.stage not in names.stages:
            experiment_id = client.get_run(names.parent).info.experiment_id
            child = client.create_run(
                experiment_id,
                run_name=self.stage,
                tags={"mlflow.parentRunId": names.parent, "stage": self.stage},
            )
            stages = names.stages | {self.stage: child.info.run_id}
            names = names.model_copy(update={"stages": stages})
            self._remember(names)
        return names.stages[self.stage]

    def _known(self, client: MlflowClient) -> RunNames | None:
        """The runs of an earlier start, if this store still has them."""
        from mlflow.exceptions import MlflowException

        path = self.run / NAMES_FILE
        if not path.exists():
            return None
        try:
            names = RunNames.model_validate_json(path.read_bytes())
        except ValidationError:
            log.warning("%s is torn: its metrics go to a new run of MLflow", path)
            return None
        if names.tracking_uri != tracking_uri():
            return None
        try:
            client.get_run(names.parent)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return names

    def _new_parent(self, client: MlflowClient) -> RunNames:
        experiment_id = _experiment_id(client, self.experiment)
        # Two parts of the path: many runs lie in a folder called `run`.
        name = "/".join(self.run.absolute().parts[-2:])
        parent = client.create_run(experiment_id, run_name=name)
        names = RunNames(
            tracking_uri=tracking_uri(), experiment=self.experiment, parent=parent.info.run_id
        )
        self._remember(names)
        return names

    def _remember(self, names: RunNames) -> None:
        storage.write_bytes(str(self.run / NAMES_FILE), names.model_dump_json(indent=2).encode())


def log_run(events: list[Event], *, experiment: str, name: str) -> None:
    """A whole MLflow run in one go, for work that ends before it is logged.

    Raises what MLflow raises, within seconds when the server is gone.
    """
    client = _new_client()
    run = client.create_run(_experiment_id(client, experiment), run_name=name)
    _send(client, run.info.run_id, [*events, End(status="FINISHED")])


def _new_client() -> MlflowClient:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # sets up its loggers: only then can they be quietened

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri())


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    uri, artifacts = tracking_uri(), None
    if uri.startswith("sqlite:///"):
        # Beside the database; MLflow's own choice would be the worker's working folder.
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    # The kind opens MLflow's table of training runs instead of its page for language models.
    return client.create_experiment(
        name,
        artifact_location=artifacts,
        tags={"mlflow.experimentKind": "custom_model_development"},
    )


def _send(client: MlflowClient, run_id: str, events: list[Event]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, event.time_ms, event.step)
        for event in events
        if isinstance(event, Metrics)
        for name, value in event.values.items()
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    for event in events:
        _send_one(client, run_id, event)


def _send_one(client: MlflowClient, run_id: str, event: Event) -> None:
    from mlflow.entities import Dataset, Param, RunTag
    from mlflow.entities import DatasetInput as Input

    match event:
        case Params():
            params = [Param(k, v) for k, v in event.values.items()]
            for start in range(0, len(params), MAX_PARAMS):
                client.log_batch(run_id, params=params[start : start + MAX_PARAMS])
        case Tags():
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in event.values.items()])
        case Picture():
            from PIL import Image

            client.log_image(run_id, Image.open(event.path), key=event.key, step=event.step)
        case Artifact():
            client.log_artifact(run_id, event.path, event.folder)
        case DatasetInput():
            source_type = "s3" if event.source.startswith("s3://") else "local"
            dataset = Dataset(
                event.name,
                event.digest[:MAX_DIGEST],
                source_type,
                json.dumps({"uri": event.source}),
                profile=json.dumps({"num_samples": event.samples}),
            )
            client.log_inputs(run_id, datasets=[Input(dataset, tags=[])])
        case End():
            client.set_terminated(run_id, event.status)

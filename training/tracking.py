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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from datagen import storage
from datagen.fields import Settings
from training.events import (
    Artifact,
    Begin,
    DatasetInput,
    End,
    Event,
    Metrics,
    Params,
    Picture,
    Status,
    Tags,
)
from training.journals import Journal, side_journals
from training.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MAX_PARAMS = 100
"""MLflow takes no more at once."""
MAX_DIGEST = 36
"""Characters that MLflow keeps of a dataset's digest; the whole one is a tag."""
MAX_REASON = 5000
"""Characters of a tag that MLflow surely takes."""
FAILURE = "failure"
"""The tag that says why a run ended as it did; it goes when the run goes on."""
RETRY_SECONDS = 5.0
STALL_SECONDS = 6.0
"""How long a server may take for the end of a run whose process is about to be ended."""
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


def forget_run(run: Path) -> None:
    """Lets the next start of a run folder have a new MLflow run; its stages must not have begun."""
    (run / NAMES_FILE).unlink(missing_ok=True)
    Journal(run).forget()


def run_page(run: Path) -> str | None:
    """Address of a run folder's page, where a server has one."""
    path = run / NAMES_FILE
    if not path.is_file():
        return None
    names = RunNames.model_validate_json(path.read_bytes())
    if not names.tracking_uri.startswith(("http://", "https://")):
        return None
    # By the run alone: MLflow shows whole experiments in the view that the browser used last, at
    # first the one for language models, whatever their kind.
    return f"{redacted(names.tracking_uri).rstrip('/')}/#/runs/{names.parent}"


class Tracker:
    """Journal and sender of one MLflow run: the parent of a training run (stage None) or of one
    stage."""

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        stage: str | None = None,
        machines: Sequence[str] = (),
        begins: bool = True,
    ) -> None:
        """
        Args:
            machines: their side journals are sent too.
            begins: the run is at work now; False only sends what is left of it.
        """
        home = run if stage is None else run / "stages" / stage
        home.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(home)
        self._journals = [self._journal, *side_journals(home, machines)]
        self._target = MlflowTarget(run, experiment=experiment, stage=stage)
        self._closing = threading.Event()
        self._step = 0
        self._journal.drop_torn_line()
        if begins:
            self.write(Begin())
        self._thread = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Appends an event; returns at once whatever the state of the server."""
        self._journal.append(event)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._step = step
        self.write(Metrics(step=step, time_ms=int(time.time() * 1000), values=values))

    def metrics_now(self, values: dict[str, float]) -> None:
        """Metrics that belong to a time, not to a step: they stand at the last one reported."""
        self.metrics(self._step, values)

    def close(self, status: Status, *, reason: str | None = None, wait: float = 60.0) -> bool:
        """Ends the run and waits up to `wait` seconds for the journal to be sent.

        Returns:
            Whether everything was sent; what was not stays in the journal for the next start.
        """
        self.write(End(status=status, reason=None if reason is None else reason[:MAX_REASON]))
        return self.drain(wait=wait)

    def drain(self, *, wait: float = 60.0) -> bool:
        """`close` of a run whose end is in the journal already."""
        self._closing.set()
        self._thread.join(timeout=wait)
        sent = all(journal.all_sent for journal in self._journals)
        if not sent:
            log.warning(
                "MLflow at %s did not take all metrics; they wait in %s and are sent when "
                "the same command "
                "runs again",
                tracking_uri(),
                self._journal.path,
            )
        return sent

    def _send_all(self) -> None:
        warned = False
        while True:
            closing = self._closing.is_set()
            try:
                sent = [journal.send(self._target.send) for journal in self._journals]
                if closing and not any(sent):
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


def end_for_the_dead(
    run: Path,
    *,
    experiment: str,
    stage: str,
    status: Status,
    reason: str | None,
    wait: float,
) -> None:
    """Ends the MLflow run of a stage whose process died without doing so, and sends what it left.

    Does nothing to a run that ended and whose journal is sent.
    """
    home = run / "stages" / stage
    journal = Journal(home)
    if journal.ended and all(one.all_sent for one in [journal, *side_journals(home)]):
        return
    tracker = Tracker(run, experiment=experiment, stage=stage, begins=False)
    if journal.ended:
        tracker.drain(wait=wait)
    else:
        tracker.close(status, reason=reason, wait=wait)


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
        names = RunNames.model_validate_json(path.read_bytes())
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
    # They would stand between the lines of JSON that a script reads.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
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
        case Begin():
            client.update_run(run_id, status="RUNNING")
            if FAILURE in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, FAILURE)
        case End():
            if event.reason is not None:
                client.set_tag(run_id, FAILURE, event.reason)
            client.set_terminated(run_id, event.status)

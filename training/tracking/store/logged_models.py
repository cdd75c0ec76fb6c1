"""Checkpoints and stages' models as models of MLflow 3, with their metrics, files and runs.

Each is looked up by its name and the run that made it, so that one that is sent again, or was left
half sent, is completed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from training.tracking.events import NOTE, KeptCheckpoints, Model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

FILE_SECONDS = 600
"""How long the server may take to answer: it passes a whole file on between us and its store."""
SUPERSEDED = "superseded"
"""The tag of a stage's model that has a successor in the same run."""
KEPT = "kept"
"""The tag that says why a checkpoint is kept."""
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def send_model(client: MlflowClient, run_id: str, event: Model) -> None:
    """Creates or completes the model in MLflow; it is READY once all of it is there."""
    from mlflow.entities import LoggedModelStatus

    files = sorted(Path(event.path).iterdir()) if event.upload else []
    run = client.get_run(run_id)
    found = _models_of(client, run, f"name = '{event.name}'")
    of_step = [one for one in found if one.params.get("step") == str(event.step)]
    model = of_step[0] if of_step else _create(client, run, event)
    # A stage that is trained further has another model. The one before may be registered, and is
    # still what it was.
    for other in found:
        if int(other.params["step"]) < event.step:
            client.set_logged_model_tags(other.model_id, {SUPERSEDED: f"by step {event.step}"})
    for maker in _makers(client, run, event):
        _link(client, maker, model.model_id, event.step)
    _log_metrics(client, run_id, model.model_id, event)
    if model.status == LoggedModelStatus.READY:
        return
    with patience():
        for path in files:
            client.log_model_artifact(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def keep_checkpoints(client: MlflowClient, run_id: str, event: KeptCheckpoints) -> None:
    """Removes the checkpoints of a stage that are not on disk anymore, and says of the others why
    they are."""
    for model in _models_of(client, client.get_run(run_id), "model_type = 'checkpoint'"):
        reason = event.reasons.get(int(model.params["step"]))
        if reason is None:
            client.delete_logged_model(model.model_id)
        elif (before := model.tags.get(KEPT)) != reason:
            # MLflow's page of a model shows its description, but no other tags.
            text = model.tags.get(NOTE, "").removeprefix(f"Kept: {before}. ")
            tags = {KEPT: reason, NOTE: f"Kept: {reason}. {text}"}
            client.set_logged_model_tags(model.model_id, tags)


def _models_of(client: MlflowClient, run: Run, which: str) -> list[LoggedModel]:
    query = f"source_run_id = '{run.info.run_id}' AND {which}"
    return list(client.search_logged_models([run.info.experiment_id], filter_string=query))


def _create(client: MlflowClient, run: Run, event: Model) -> LoggedModel:
    return client.create_logged_model(
        run.info.experiment_id,
        name=event.name,
        source_run_id=run.info.run_id,
        model_type=event.type,
        params=event.params,
        tags=event.tags,
    )


def _makers(client: MlflowClient, run: Run, event: Model) -> Iterator[Run]:
    """The runs whose pages list the model: its stage's, and the training's if it is no checkpoint,
    of which there may be many."""
    yield run
    parent = run.data.tags.get("mlflow.parentRunId")
    if parent is not None and event.type == "stage model":
        yield client.get_run(parent)


def _link(client: MlflowClient, run: Run, model_id: str, step: int) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != model_id for output in outputs):
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step)])


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, event: Model) -> None:
    """The same values at the same time as in the run, where they are not logged again then."""
    from mlflow.entities import Metric

    if event.held_out is None:
        return
    time_ms, step = event.held_out.time_ms, event.held_out.step
    of = {
        "model_id": model_id,
        "dataset_name": event.dataset.name,
        "dataset_digest": event.dataset.short_digest,
        "run_id": run_id,
    }
    values = sorted(event.held_out.values.items(), key=_column)
    client.log_batch(run_id, [Metric(name, value, time_ms, step, **of) for name, value in values])


def _column(metric: tuple[str, float]) -> tuple[bool, bool, bool, str]:
    """The place of a metric among the columns of MLflow's page, which keep the order in which they
    came: quality over all samples, then by scale and source, and last what is there to compare
    with."""
    name, _ = metric
    part = "_x" in name or "_source" in name
    return name.startswith("val/loss/"), name.endswith("_bicubic"), part, name


@contextmanager
def patience() -> Iterator[None]:
    """Lets MLflow's clients wait for files inside the block: they ask the environment at each
    request how long."""
    before = os.environ[_TIMEOUT]
    os.environ[_TIMEOUT] = str(max(FILE_SECONDS, int(before)))
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before

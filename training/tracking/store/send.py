"""Sends events to a run of MLflow that is there; which run, and when again, others know."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from datagen.io.redaction import redacted
from training.tracking import events as logged
from training.tracking.events import End, Event, KeptCheckpoints, Metrics, Model
from training.tracking.store.address import tracking_uri
from training.tracking.store.client import active_run
from training.tracking.store.dataset_links import log_dataset_input
from training.tracking.store.logged_models import keep_checkpoints, send_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

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


def send_events(client: MlflowClient, run_id: str, events: list[Event]) -> None:
    """Raises what MLflow raises, but for an event that it will never accept: that is skipped."""
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
            if error.error_code != "INVALID_PARAMETER_VALUE" or active_run(client, run_id) is None:
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

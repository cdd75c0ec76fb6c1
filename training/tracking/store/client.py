"""A client of MLflow's, and what is asked of it everywhere."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from training.tracking.store.address import database_file, tracking_uri
from training.tracking.store.database import prepare_database

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def active_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run of the store; None if it has none, or one that is marked as deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


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


def experiment_id_of(client: MlflowClient, name: str) -> str:
    """The experiment of that name; it is made if the store has none."""
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

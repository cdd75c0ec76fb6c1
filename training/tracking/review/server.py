"""Whether the MLflow that is reviewed answers, its version, and its errors in a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from datagen.errors import FlowmapsrError, NoServerError, first_line
from datagen.io.probe import ask_http, asked, silence
from datagen.io.redaction import redacted
from training.tracking.store.address import database_file, is_server, mlflow_installed

ANSWER_SECONDS = 5


@contextmanager
def errors_in_a_line(uri: str) -> Iterator[None]:
    """Says in a line what MLflow raises; a database that is not there would be made by it."""
    where = redacted(uri)
    if not mlflow_installed():
        raise FlowmapsrError("MLflow is not installed: pip install mlflow")
    path = database_file(uri)
    if path is not None and not path.is_file():
        raise FlowmapsrError(
            f"there is no MLflow store at {where}: give the folder of a run, or set "
            "MLFLOW_TRACKING_URI"
        )
    try:
        yield
    except FlowmapsrError:
        raise
    # Of a database and of the network come other errors than MLflow's.
    except Exception as error:
        what = first_line(error).partition(". ")[0]
        if "database schema" not in what:
            raise FlowmapsrError(f"MLflow at {where} fails: {what}") from error
        raise FlowmapsrError(
            f"the store {where} is of another version of MLflow than {version('mlflow')}: {what}. "
            f"Open it with its own version, or upgrade an older one: mlflow db upgrade {where}"
        ) from error


def require_answer(uri: str) -> None:
    """Asks before MLflow is loaded, which takes seconds."""
    answer = asked(ask_http, f"{uri.rstrip('/')}/version", seconds=ANSWER_SECONDS)
    if reason := silence(answer, seconds=ANSWER_SECONDS):
        raise NoServerError(
            f"MLflow at {redacted(uri)} does not answer ({reason}); start the server there, or set "
            "MLFLOW_TRACKING_URI to another"
        )


def major_version(uri: str) -> int | None:
    """Of MLflow where the page is shown; None for a server that does not tell. Asks once and
    briefly, so that a dead server is known in seconds."""
    if not is_server(uri):
        return int(version("mlflow").partition(".")[0])
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/version",
            "GET",
            timeout=ANSWER_SECONDS,
            max_retries=0,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise FlowmapsrError(f"MLflow at {redacted(uri)} does not answer any more") from error
    found = re.match(r"(\d+)\.\d+", answer.text.strip())
    return int(found[1]) if answer.ok and found else None

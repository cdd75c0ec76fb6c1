"""Where MLflow keeps its runs: the address of the store, apart from its password.

Does not import MLflow.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from datagen.io.redaction import redacted, split_user

SQLITE = "sqlite:///"
URI = "MLFLOW_TRACKING_URI"
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def mlflow_installed() -> bool:
    """Whether MLflow can be imported; finds it without the seconds that an import takes."""
    return find_spec("mlflow") is not None


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file in the working folder; a path in it is absolute.

    User and password of a server go to the variables that MLflow has for them.
    """
    uri = os.environ.get(URI) or f"{SQLITE}mlflow.db"
    if is_server(uri):
        address, *credentials = split_user(uri)
        if all(credentials):  # MLflow sends no name without a password
            os.environ.update(zip(CREDENTIALS, credentials, strict=True))
            os.environ[URI] = uri = address
    path = database_file(uri)
    return uri if path is None else f"{SQLITE}{path}"


def store_variables() -> dict[str, str]:
    """What a process on another machine needs to open the same store."""
    uri = tracking_uri()
    return {URI: uri, **{name: os.environ[name] for name in CREDENTIALS if name in os.environ}}


def public_uri(uri: str) -> str:
    """What is written down of a store's address: a changed password is the same store."""
    return redacted(split_user(uri)[0])


def openable_uri(written: str) -> str:
    """The address of the environment, with its password, for the same store as was written down."""
    uri = tracking_uri()
    return uri if public_uri(uri) == written else written


def is_server(uri: str) -> bool:
    """Whether a store is a server, not a database."""
    return uri.startswith(("http://", "https://"))


def database_file(uri: str) -> Path | None:
    """The absolute path of a SQLite file, where a store is one."""
    is_path = uri.startswith(SQLITE) and "?" not in uri
    return Path(uri.removeprefix(SQLITE)).absolute() if is_path else None

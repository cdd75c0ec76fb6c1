"""Where runs are tracked by default, and which logs reach the terminal."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pipelines.environment import (
    default_tracking_uri,
    leave_run_logs_to_prefect,
    prepare_environment,
)


@pytest.mark.parametrize(
    ("address", "worker", "server", "kept"),
    [
        ("10.0.0.1:6379", False, "", True),
        ("", True, "", True),
        ("", False, "", False),
        ("10.0.0.1:6379", True, "http://host:5000", False),
    ],
)
def test_tracking_defaults_to_the_output_where_the_working_folder_is_lost(
    address: str,
    worker: bool,
    server: str,
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    default_tracking_uri(str(tmp_path), worker=worker)
    tracked = f"sqlite:///{tmp_path}/mlflow.db" if kept else server
    assert os.environ["MLFLOW_TRACKING_URI"] == tracked


def test_what_goes_to_a_home_that_cannot_be_written_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/proc/none"})
    prepare_environment()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 32 and not os.environ["MPLCONFIGDIR"].startswith("/proc")
    prepare_environment()
    assert os.environ["RAY_AUTH_TOKEN"] == token
    monkeypatch.setattr(os, "environ", {"HOME": "/proc/none", "RAY_ADDRESS": "10.0.0.1:6379"})
    prepare_environment()
    assert "RAY_AUTH_TOKEN" not in os.environ  # that of the cluster is another one


def test_only_messages_about_a_lost_prefect_server_are_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leave_run_logs_to_prefect()
    log = logging.getLogger("prefect.events.clients")
    log.warning("Unable to connect to %r.", "http://127.0.0.1:9")
    log.warning("another problem")
    assert [record.getMessage() for record in caplog.records] == ["another problem"]

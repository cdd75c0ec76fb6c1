"""Where runs are tracked when nobody says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.environment import default_tracking_uri


@pytest.mark.parametrize(
    ("address", "worker", "server", "kept"),
    [
        ("10.0.0.1:6379", False, "", True),
        ("", True, "", True),
        ("", False, "", False),
        ("10.0.0.1:6379", True, "http://host:5000", False),
    ],
)
def test_the_output_has_the_database_where_a_working_folder_would_be_lost(
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

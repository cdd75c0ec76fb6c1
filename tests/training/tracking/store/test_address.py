"""The address of MLflow's store, apart from its password."""

from __future__ import annotations

import os

import pytest

from training.tracking.store.address import (
    CREDENTIALS,
    openable_uri,
    public_uri,
    store_variables,
    tracking_uri,
)
from training.tracking.store.run_names import RunNames

SERVER = "https://host:5000/mlflow"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.setenv(name, "of before")


def test_a_password_goes_to_mlflows_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER.replace("//", "//me:p%40s@s@"))
    assert tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == SERVER
    assert [os.environ[name] for name in CREDENTIALS] == ["me", "p@s@s"]
    assert tracking_uri() == SERVER
    assert set(store_variables().values()) == {SERVER, "me", "p@s@s"}


@pytest.mark.parametrize(
    "uri", ["postgresql://me:secret@host/db?password=secret", SERVER.replace("//", "//secret@")]
)
def test_what_mlflow_has_no_variables_for_stays_but_is_not_written_down(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == uri and "secret" not in public_uri(uri)
    assert openable_uri(public_uri(uri)) == uri


def test_another_password_is_the_same_store(monkeypatch: pytest.MonkeyPatch) -> None:
    of_before = SERVER.replace("//", "//me:old@")
    names = RunNames(tracking_uri=of_before, experiment="photos", parent="1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER.replace("//", "//me:new@"))
    assert names.tracking_uri == public_uri(tracking_uri()) == openable_uri(names.tracking_uri)
    assert "old" not in names.model_dump_json()
    assert openable_uri("https://other:5000") == "https://other:5000"

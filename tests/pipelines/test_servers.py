"""Dead servers are named in seconds, with their variable and what to do."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datagen.errors import NoServerError
from datagen.io import s3_client
from pipelines import servers
from pipelines.servers import PREFECT, RAY, check_servers
from tests.pipelines.conftest import Ended
from tests.support.dead_servers import (
    guarded_server,
    refusing_server,
    silent_port,
    swallowing_port,
)
from tests.support.ray_processes import main_server


@pytest.fixture
def dead() -> Iterator[dict[str, str]]:
    """All three servers, each dead in another way."""
    with silent_port() as silent, swallowing_port() as swallowing, silent_port() as third:
        yield {
            "RAY_ADDRESS": f"127.0.0.1:{silent}",
            "PREFECT_API_URL": f"http://127.0.0.1:{swallowing}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{third}",
        }


def test_all_dead_servers_are_named_at_once(
    dead: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(servers, "SECONDS", 0.5)
    for name, address in dead.items():
        monkeypatch.setenv(name, address)
    begun = time.monotonic()
    with pytest.raises(NoServerError) as refused:
        check_servers(RAY, PREFECT)
    assert time.monotonic() - begun < 3
    ray, prefect = str(refused.value).splitlines()
    assert f"no Ray cluster answers at RAY_ADDRESS={dead[RAY]} (it is silent); start it" in ray
    assert f"PREFECT_API_URL={dead[PREFECT]}" in prefect and "or unset it" in prefect
    (warning,) = caplog.messages
    assert f"MLFLOW_TRACKING_URI={dead['MLFLOW_TRACKING_URI']}" in warning
    assert "The work goes on without it" in warning


def test_servers_that_answer(
    ray_cluster_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster_address)
    with refusing_server() as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        check_servers(RAY, PREFECT)
        assert not caplog.messages
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(NoServerError, match="it is another kind of server"):
            check_servers(RAY)


def test_refused_passwords_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    right = "Basic " + b64encode(b"me:right").decode()
    with guarded_server(right) as port, main_server("r" * 40, folder=tmp_path) as ray:
        address = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("RAY_ADDRESS", ray)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")

        def log_in(password: str, token: str) -> None:
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"me:{password}")
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)

        log_in("right", "r" * 40)
        check_servers(RAY, PREFECT)
        assert not caplog.messages
        log_in("wrong", "w" * 40)
        with pytest.raises(NoServerError) as refused:
            check_servers(RAY, PREFECT)
        monkeypatch.delenv("PREFECT_API_AUTH_STRING")
        with pytest.raises(NoServerError, match="refuses this command"):
            check_servers(PREFECT)
        (tmp_path / "profiles.toml").touch()  # which may hold the password
        check_servers(PREFECT)
    of_ray, of_prefect = str(refused.value).splitlines()
    assert f"RAY_ADDRESS={ray} refuses" in of_ray and "set RAY_AUTH_MODE=token" in of_ray
    assert "refuses this command (401" in of_prefect and "PREFECT_API_AUTH_STRING" in of_prefect
    assert "correct MLFLOW_TRACKING_USERNAME" in caplog.messages[0]
    assert caplog.messages[0].endswith("The work goes on without it")
    assert not {"wrong", "w" * 40} & set(re.split(r"\W", f"{refused.value} {caplog.text}"))


def test_commands_ask_before_they_load_their_libraries(
    flowmapsr: Callable[..., Ended], build_words: Callable[..., list[str]], tmp_path: Path
) -> None:
    with silent_port() as port:
        begun = time.monotonic()
        env = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        ended = flowmapsr(*build_words(tmp_path / "set"), env=env)
        assert time.monotonic() - begun < 15 and ended.code == 1
    assert f"RAY_ADDRESS=127.0.0.1:{port} (it is silent)" in ended.err
    assert not (tmp_path / "set").exists()


def test_a_verification_without_its_server_finds_no_faults(
    invoke: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "FIRST_CONTACT", 0.5)
    with silent_port() as port:
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **keys}
        ended = invoke("dataset", "verify", "s3://bucket/set", "--json", env=env)
    assert ended.code == 1 and "no S3 server answers" in ended.json["error"]

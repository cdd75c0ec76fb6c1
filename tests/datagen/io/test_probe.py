"""A server that answers, and each way in which one does not."""

from __future__ import annotations

import time
from functools import partial

import pytest

from datagen.errors import NoServerError
from datagen.io import s3_client, storage
from datagen.io.probe import Probe, ask_grpc, ask_http, asked, silence
from tests.support.dead_servers import refusing_server, silent_port, swallowing_port
from tests.support.ports import free_port

CALL = partial(ask_grpc, method="/ray.rpc.NodeInfoGcsService/GetClusterId", token="")


def reason(probe: Probe, address: str) -> str | None:
    return silence(asked(probe, address, seconds=0.5), seconds=0.5)


@pytest.mark.parametrize(("probe", "scheme"), [(ask_http, "http://"), (CALL, "")])
def test_what_does_not_answer_is_told_apart(probe: Probe, scheme: str) -> None:
    with silent_port() as silent, swallowing_port() as swallowing:
        assert reason(probe, f"{scheme}127.0.0.1:{silent}") == "it is silent"
        assert reason(probe, f"{scheme}127.0.0.1:{swallowing}") == "it is silent"
    assert reason(probe, f"{scheme}127.0.0.1:{free_port()}") == "Connection refused"
    assert reason(probe, f"{scheme}no-such-host.invalid:80") is not None


def test_any_answer_counts_but_of_another_kind_of_server() -> None:
    with refusing_server() as port:
        assert reason(ask_http, f"http://127.0.0.1:{port}/health") is None
        assert reason(CALL, f"127.0.0.1:{port}") == "it is another kind of server"


@pytest.mark.parametrize("address", ["http://head:8265/", "head", "head:6379/x"])
def test_what_is_no_address_is_told(address: str) -> None:
    assert "looks like 10.0.0.1:6379" in (reason(CALL, address) or "")


def test_a_name_server_that_is_silent_has_a_limit() -> None:
    def never(address: str, seconds: float) -> None:
        time.sleep(60)

    assert reason(never, "host:80") == "it is silent"


def test_an_s3_server_that_never_answered_is_given_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "FIRST_CONTACT", 1.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    begun = time.monotonic()
    with silent_port() as port:
        address = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        with pytest.raises(NoServerError, match=f"AWS_ENDPOINT_URL_S3={address} .it is silent.; "):
            storage.read_bytes("s3://bucket/key")
    assert time.monotonic() - begun < 30, "PATIENCE is 120"

"""A real S3 server for tests and, before it, a proxy that fails as networks do.

Every test imports this file, and machines without S3 have neither boto3 nor moto.
"""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datagen.io import s3_client

_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    "<Error><Code>{code}</Code><Message>told by a test</Message></Error>"
)
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "server", "date"})


@dataclass
class Fault:
    """What to do to the next `times` requests whose method is `method`."""

    kind: str
    """status | reset | cut_download | cut_upload | delay | lost_answer"""
    method: str
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    after: int = 0
    """Bytes of the body that still pass."""
    seconds: float = 0.0
    path: str = ""
    """Only requests whose path ends so."""


@dataclass
class FaultyS3:
    """The address of the proxy, a bucket, the faults to come and the requests that came."""

    endpoint: str = ""
    bucket: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    keys_seen: list[str] = field(default_factory=list)
    """The access key of every request, in order."""
    client: Any = None
    """Straight to the server, past the faults."""

    def fail(self, kind: str, method: str, **how: Any) -> None:
        self.faults.append(Fault(kind, method, **how))

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and fault.times > 0 and path.endswith(fault.path):
                fault.times -= 1
                return fault
        return None


def _handler(state: FaultyS3, server: tuple[str, int]) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            if self.path == "/":  # only asks whether a server is there
                self._answer(403, {}, b"")
                return
            with lock:
                state.requests[self.command] += 1
                state.keys_seen.append(self._access_key())
                fault = state.take_fault(self.command, self.path)
            kind = fault.kind if fault else ""
            if fault and kind == "cut_upload":
                self.rfile.read(fault.after)
                self._reset()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault and kind == "reset":
                self._reset()
                return
            if fault and kind == "status":
                self._answer(fault.status, {}, _ERROR.format(code=fault.code).encode())
                return
            if fault and kind == "delay":
                time.sleep(fault.seconds)
            status, headers, data = self._forward(body)
            if fault and kind == "lost_answer":
                self._reset()
                return
            self._answer(status, headers, data, cut=fault.after if kind == "cut_download" else None)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any

        def _access_key(self) -> str:
            return self.headers.get("Authorization", "").partition("Credential=")[2].split("/")[0]

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(*server, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            return answer.status, dict(answer.getheaders()), data

        def _answer(
            self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            head = self.command == "HEAD"
            length = headers.get("Content-Length", "0") if head else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if head:
                return
            self.wfile.write(data if cut is None else data[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

        def _reset(self) -> None:
            """RST, not FIN: what a crashed server or a firewall does."""
            option = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            self.close_connection = True
            self.rfile.close()
            self.connection.close()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Connections break here on purpose."""

    def shutdown_request(self, request: Any) -> None:
        # Already closed by a reset.
        if request.fileno() >= 0:
            super().shutdown_request(request)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """moto's S3 over HTTP on loopback, one for the session; its host and port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def faulty_s3(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """An empty bucket behind a proxy that fails on demand; the environment points there."""
    import boto3

    state = FaultyS3(bucket=f"bucket-{os.urandom(4).hex()}")
    proxy = _Server(("127.0.0.1", 0), _handler(state, s3_server))
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    state.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", state.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(s3_client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(s3_client, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(s3_client, "PATIENCE", 5.0)
    state.client = boto3.client("s3", endpoint_url="http://{}:{}".format(*s3_server))
    state.client.create_bucket(Bucket=state.bucket)
    yield state
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet on a disk, and a prefix on S3."""
    if request.param == "local":
        return str(tmp_path / "root")
    faulty: FaultyS3 = request.getfixturevalue("faulty_s3")
    return f"s3://{faulty.bucket}/root"

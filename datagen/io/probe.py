"""Whether a server answers at an address, within seconds: the libraries wait for minutes.

Any answer counts, an error too: what it means the libraries say themselves, and soon. Only a
refused password or token is told here where one is sent: the libraries try it again and again.
"""

from __future__ import annotations

import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http.client import HTTPException

_UNAUTHENTICATED = "16"
"""A status of gRPC."""

Probe = Callable[[str, float], None]
"""Asks the server at an address, with a limit for each wait; raises what goes wrong."""


class RefusedError(Exception):
    """The server answers, and takes no such password or token; says how."""


def asked(probe: Probe, address: str, *, seconds: float) -> Future[None]:
    """The answer to come. In a thread, since a name server that is silent has no limit."""
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            probe(address, seconds)
        except (OSError, HTTPException, ValueError, RefusedError) as error:
            answer.set_exception(error)
        else:
            answer.set_result(None)

    threading.Thread(target=ask, name="probe", daemon=True).start()
    return answer


def silence(answer: Future[None], *, seconds: float) -> str | None:
    """Why there is no answer within so many seconds; None if there is one.

    Raises:
        RefusedError: the answer is a refusal.
    """
    try:
        answer.result(timeout=seconds)
    except TimeoutError:
        return "it is silent"
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return "it is silent"
        return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return None


def ask_http(url: str, seconds: float, login: Mapping[str, str] | None = None) -> None:
    """Asks as the libraries do, through a proxy where the environment names one.

    Args:
        login: headers with a password; empty for none. Without it a refusal is an answer too.

    Raises:
        RefusedError: the server does not take the login.
    """
    anyone = ssl.create_default_context()  # of a bad certificate the libraries tell themselves
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, headers=dict(login or {}))
    try:
        # The address is the user's own.
        urllib.request.urlopen(request, timeout=seconds, context=anyone).close()  # nosec B310
    except urllib.error.HTTPError as answer:
        with answer:
            if login is not None and answer.code in (401, 403):
                text = answer.read(200).decode(errors="replace").strip()
                raise RefusedError(f"{answer.code} {answer.reason}: {text}") from None


def ask_grpc(address: str, seconds: float, method: str, *, token: str) -> None:
    """Calls a method of a gRPC server at `host:port` with an empty message.

    Args:
        token: empty for none.

    Raises:
        RefusedError: the server does not take the token.
    """
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import ResponseReceived, StreamEnded, TrailersReceived
    from h2.exceptions import H2Error

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address looks like 10.0.0.1:6379")
    login = [("authorization", f"Bearer {token}")] if token else []
    call = [(":method", "POST"), (":scheme", "http"), (":authority", address), (":path", method)]
    http = H2Connection(H2Configuration(header_encoding="utf-8"))
    http.initiate_connection()
    http.send_headers(1, [*call, ("te", "trailers"), ("content-type", "application/grpc"), *login])
    http.send_data(1, bytes(5), end_stream=True)
    said: dict[str, str] = {}
    with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
        connection.sendall(http.data_to_send())
        events: list[object] = []
        while not any(isinstance(event, StreamEnded) for event in events):
            data = connection.recv(1 << 16)
            try:
                events = list(http.receive_data(data))
            except H2Error:
                data = b""
            if not data:
                raise ValueError("it is another kind of server")
            for event in events:
                if isinstance(event, ResponseReceived | TrailersReceived):
                    said.update((str(name), str(value)) for name, value in event.headers)
            connection.sendall(http.data_to_send())
    if said.get("grpc-status") == _UNAUTHENTICATED:
        raise RefusedError(said.get("grpc-message", "no reason given"))

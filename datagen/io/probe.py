"""Whether a server answers at an address, within seconds: the libraries wait for minutes.

Any answer counts, an error too: what it means the libraries say themselves, and soon.
"""

from __future__ import annotations

import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How every client of gRPC begins: HTTP/2 and its settings, none of them (RFC 9113, 3.4)."""
_SETTINGS = 4
"""The type of a frame, which is its fourth byte."""

Probe = Callable[[str, float], None]
"""Asks the server at an address, with a limit for each wait; raises what goes wrong."""


def asked(probe: Probe, address: str, *, seconds: float) -> Future[None]:
    """The answer to come. In a thread, since a name server that is silent has no limit."""
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            probe(address, seconds)
        except (OSError, HTTPException, ValueError) as error:
            answer.set_exception(error)
        else:
            answer.set_result(None)

    threading.Thread(target=ask, name="probe", daemon=True).start()
    return answer


def silence(answer: Future[None], *, seconds: float) -> str | None:
    """Why there is no answer within so many seconds; None if there is one."""
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


def ask_http(url: str, seconds: float) -> None:
    """Asks as the libraries do, through a proxy where the environment names one."""
    anyone = ssl.create_default_context()  # of a bad certificate the libraries tell themselves
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(url, timeout=seconds, context=anyone).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()


def ask_grpc(address: str, seconds: float) -> None:
    """Asks whether a server at `host:port` speaks gRPC."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address looks like 10.0.0.1:6379")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
        connection.sendall(_GREETING)
        said = connection.recv(len(_GREETING))
    if said[3:4] != bytes([_SETTINGS]):
        raise ValueError("it is another kind of server")

"""Turns a process into the text by which others know that it holds a lock, and back.

Knows processes and machines, no storage.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass, replace

import psutil


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock; `started` and `heartbeat` are seconds since 1970 by the holder's clock.

    `machine` tells process numbers that can be compared from those of another host or container,
    `process_started` (seconds after boot) a living process from a later one with the same number.
    `replaces` is the token of the holder that was taken over.
    """

    token: str
    replaces: str
    host: str
    machine: str
    pid: int
    process_started: float
    user: str
    started: float
    heartbeat: float


UNKNOWN = Holder("", "", "unknown", "", 0, 0.0, "unknown", 0.0, 0.0)
"""Stands for a holder of whom nothing can be read."""


def is_running(holder: Holder) -> bool:
    """Whether the holder's process lives; only for a holder of this `machine()`."""
    try:
        process = psutil.Process(holder.pid)
        same = abs(_seconds_after_boot(process) - holder.process_started) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def this_process(*, replaces: str) -> Holder:
    """This process as a holder with a token of its own; `replaces` is the old holder's token."""
    process = psutil.Process()
    now = time.time()
    return Holder(
        token=secrets.token_hex(16),
        replaces=replaces,
        host=socket.gethostname(),
        machine=machine(),
        pid=process.pid,
        process_started=_seconds_after_boot(process),
        user=_user(process),
        started=now,
        heartbeat=now,
    )


def _seconds_after_boot(process: psutil.Process) -> float:
    """When a process began, by a clock that nobody sets."""
    return process.create_time() - psutil.boot_time()


def _user(process: psutil.Process) -> str:
    try:
        return process.username()
    except (psutil.Error, KeyError):  # a container's user need not have a name
        return str(os.getuid())


def machine() -> str:
    """Host, boot and process name space: containers may share the first two."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            parts.append(stream.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def to_bytes(holder: Holder) -> bytes:
    """The content of the lock's file."""
    return json.dumps(asdict(holder), indent=1).encode()


def from_bytes(data: bytes) -> Holder:
    """The holder in a lock's file; for what cannot be read, an unknown one that is alive."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        # Another version's, or not yet written on a disk without hard links.
        now = time.time()
        return replace(UNKNOWN, token=data.hex(), heartbeat=now, started=now)


def described(holder: Holder) -> str:
    """Host, process, user and begin, for a message."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.started))
    return f"host {holder.host}, pid {holder.pid}, user {holder.user}, since {since}"

"""Describes the process that owns a lock, as JSON in the lock's file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass, replace

import psutil


@dataclass(frozen=True, slots=True)
class LockOwner:
    """The owner of a lock; `started` and `heartbeat` are seconds since 1970 by its own clock.

    Process numbers can be compared only if `machine` (host or container) is the same; then
    `process_started` (seconds after boot) separates a process from a later one of that number.
    `replaces` is the token of the owner that was replaced.
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


UNKNOWN = LockOwner("", "", "unknown", "", 0, 0.0, "unknown", 0.0, 0.0)
"""Placeholder for an unreadable owner."""


def is_running(owner: LockOwner) -> bool:
    """Whether the owner's process lives; only for an owner on this `machine()`."""
    try:
        process = psutil.Process(owner.pid)
        same = abs(_seconds_after_boot(process) - owner.process_started) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def this_process(*, replaces: str) -> LockOwner:
    """This process as an owner with a new token; `replaces` is the previous owner's token."""
    process = psutil.Process()
    now = time.time()
    return LockOwner(
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
    """When a process started, by a clock that is never adjusted."""
    return process.create_time() - psutil.boot_time()


def _user(process: psutil.Process) -> str:
    try:
        return process.username()
    except (psutil.Error, KeyError):  # a container's user need not have a name
        return str(os.getuid())


def machine() -> str:
    """Host, boot and process namespace: containers may share the first two."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            parts.append(stream.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def to_bytes(owner: LockOwner) -> bytes:
    return json.dumps(asdict(owner), indent=1).encode()


def from_bytes(data: bytes) -> LockOwner:
    """The owner in a lock's file; one of unreadable content is unknown, with no time that helps."""
    try:
        owner = LockOwner(**json.loads(data))
        if _types(owner) == _types(UNKNOWN):
            return owner
    except (ValueError, TypeError):
        pass
    # From another version, or not yet written, on a file system without hard links.
    return replace(UNKNOWN, token=data.hex(), heartbeat=math.inf)


def _types(owner: LockOwner) -> list[type]:
    return [type(value) for value in asdict(owner).values()]


def describe(owner: LockOwner) -> str:
    """Host, process, user and start, for a message."""
    if not owner.pid:
        return f"host {owner.host}, as its file cannot be read"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.started))
    return f"host {owner.host}, pid {owner.pid}, user {owner.user}, since {since}"

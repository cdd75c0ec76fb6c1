"""Ray nodes as processes that can be started and killed, for the benchmarks that kill at random."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil


def name_cluster() -> str:
    """An address of this process's own; the environment points drivers there."""
    address = f"127.0.0.1:{20_000 + os.getpid() % 10_000}"
    os.environ.update(RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
    return address


def head_words(address: str) -> tuple[str, ...]:
    """What `ray start` is told to begin a cluster at `address`."""
    port = address.rpartition(":")[2]
    return ("--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1")


def start_ray(*words: str, log: Path) -> subprocess.Popen[bytes]:
    """A node by `ray start`, which is ready when this returns."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
    for _ in range(5):  # the port of a killed cluster may be taken for some seconds
        with log.open("wb") as output:
            node = subprocess.Popen(
                [*command, "--object-store-memory=100000000"],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if waited(partial(_told, node, log)) and node.poll() is None:
            return node
        time.sleep(2)
    raise RuntimeError(log.read_text())


def _told(node: subprocess.Popen[bytes], log: Path) -> bool:
    return "runtime started" in log.read_text() or node.poll() is not None


def waited(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    for one in [*descendants(process), psutil.Process(process.pid)]:
        with ignoring_the_dead():
            one.kill()
    process.wait()


@contextmanager
def ignoring_the_dead() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return

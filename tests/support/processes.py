"""Processes that a test starts and kills."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

import psutil


class Process(Protocol):
    """What tests do with a process: a real `Popen`, or a `ForkedLauncher`."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def communicate(self, *, timeout: float | None = None) -> tuple[Any, Any]: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def kill_tree(process: Process) -> None:
    """SIGKILL to a process and to all below it, which would outlive it; waits for its end."""
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            for one in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    process.wait()

"""Waits for what another process or thread does; no test sleeps for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.processes import Process


def eventually(
    condition: Callable[[], object],
    process: Process | None = None,
    *,
    seconds: float = 240,
    poll: float = 0.05,
) -> None:
    """Returns as soon as the condition is true.

    Raises:
        AssertionError: it was not in time, or the process that should make it true has ended.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        time.sleep(poll)

"""Ends what a command has started when the command ends, whatever ends it: kill -9 too.

A watcher in a session of its own notes the command's children, and theirs. Once the command is
gone it ends those that are left: orphans of Ray need a minute to notice, Prefect's server never.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache

import psutil

SECONDS = 0.5
"""Within which the end of the command is noticed. New children are looked for as often, but rarer
where that would take more than 1 % of a core: on a machine with many processes."""


@cache
def end_children_with_this_process() -> subprocess.Popen[bytes]:
    """Starts the watcher of this process, once."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(pid: int) -> None:
    known: set[psutil.Process] = set()
    next_look = 0.0
    while os.getppid() == pid:
        start = time.monotonic()
        if start >= next_look:
            with suppress(psutil.NoSuchProcess):
                known = {child for child in known if child.is_running()}
                known.update(psutil.Process(pid).children(recursive=True))
            next_look = start + 100 * (time.monotonic() - start)
        time.sleep(SECONDS)
    for child in known - {psutil.Process()}:
        with suppress(psutil.NoSuchProcess):
            child.kill()  # never another process that has the same number by now


if __name__ == "__main__":
    _watch(int(sys.argv[1]))

"""Kills a worker that stands still as a whole: stopped by a signal, or waiting for a lost disk.

Its watchdog stands still with it. So this small process beside it is told, every few seconds, how
long the watchdog may be silent. Started as a file: it must not take the seconds of an import.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARGIN_SECONDS = 5.0
"""How much later than the watchdog it acts: that one leaves stack traces."""
POLL_SECONDS, WRITE_SECONDS = 0.5, 5.0
TELL_SECONDS = 30.0
"""A worker that is silent for so long is told of, once."""
STATES = {
    "T": "its process is stopped (as by kill -STOP)",
    "D": "its process waits for a disk or a device that does not answer",
}
"""In words, by Linux's letter for the state of a process."""


class OutsideWatch:
    """The process beside this one; `close` ends it."""

    def __init__(self, folder: Path, header: dict[str, object]) -> None:
        """
        Args:
            folder: of the file that it writes before it kills.
            header: the fields of its `StackHeader`, all but the reason.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), folder, json.dumps(header)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def alive(self, doing: str, *, silent: float) -> None:
        """This process runs; it is dead if it does not say so again within so many seconds."""
        line = json.dumps({"doing": doing, "silent": silent + MARGIN_SECONDS})
        with suppress(BlockingIOError, BrokenPipeError):  # the other process was stopped or killed
            os.write(self._pipe, f"{line}\n".encode())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _watch(worker: int, folder: Path, header: dict[str, object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)  # a worker that saves is still watched
    said: dict[str, object] = {}
    silent = 0.0  # not by a clock: if both are stopped together, as by Ctrl-Z, it is no fault
    while os.getppid() == worker:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            lines = os.read(0, 1 << 16).splitlines()
            if not lines:
                return
            said, silent = json.loads(lines[-1]), 0.0
            continue
        before, silent = silent, silent + POLL_SECONDS
        if not said:
            continue
        limit = float(str(said["silent"]))
        reason = f"no sign of life for {silent:.0f} s after {said['doing']}: {_state(worker)}"
        if before < TELL_SECONDS <= silent:
            _beside(_tell, f"worker {header['rank']}: {reason}; it is killed after {limit:.0f} s")
        if silent > limit:
            _beside(_write, folder, {**header, "reason": reason})
            os.kill(worker, signal.SIGKILL)
            return


def _beside(work: Callable[..., None], *words: object) -> None:
    """In a thread: the disk or the terminal may be what the worker waits for."""
    thread = threading.Thread(target=work, args=words, daemon=True)
    thread.start()
    thread.join(WRITE_SECONDS)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _state(worker: int) -> str:
    try:
        letter = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # not Linux
        letter = ""
    return STATES.get(letter, "its process does not react")


def _write(folder: Path, header: dict[str, object]) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    (folder / f"{stamp}-rank-{header['rank']}.txt").write_text(f"{json.dumps(header)}\n")
    _tell(f"worker {header['rank']}: {header['reason']}; killed")


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))

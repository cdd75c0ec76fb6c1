"""Ends a worker that makes no progress, with the stack traces of all its threads on disk.

A worker that waits for a dead or stuck one would wait forever and hold its devices. Once it is
killed, the launcher handles it like any other failure. A process that is stopped as a whole is
killed from outside (`training/monitoring/outside_watch.py`).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Self

from datagen.io import storage
from training.monitoring.outside_watch import OutsideWatch
from training.monitoring.worker_log import PROGRESS
from training.run_dir.best_effort import best_effort
from training.run_dir.records import STILL_SECONDS
from training.run_dir.stacks import STAMP, StackHeader, keep_frozen

log = logging.getLogger(__name__)

LONG_FACTOR, LONG_SECONDS = 3.0, 120.0
"""The start and the first step, which read weights and may compile, and waiting for a checkpoint
may take this many times as long, and always this many seconds."""
OTHERS_SECONDS = 20.0
"""How long the first worker to notice waits for the others' stack traces."""
BEFORE_END_SECONDS = 15.0
"""How long the calls of `before_end` may take."""
FROZEN_SECONDS = 10.0
"""How much later a worker that holds Python's lock is killed, while the others wait for its stack
traces."""
LAST_TRACES_SECONDS = 60.0
"""More than all of these together: how much later a worker that waits for another may fail."""
EXIT_CODE = 70
_STACKS_NAME = re.compile(r"[\d-]+-rank-\d+\.txt")
STDERR = 2
"""File descriptor; `sys.stderr` may be an object without one."""


def longest_allowance(seconds: float) -> float:
    """The longest time without progress that a watchdog of so many seconds ever allows."""
    return max(LONG_FACTOR * seconds, LONG_SECONDS)


def connection_timeout(seconds: float) -> timedelta:
    """How long workers may wait for each other under such a watchdog: a bit longer than it does,
    so that the stack traces of all come before the error of a lost connection."""
    return timedelta(seconds=longest_allowance(seconds) + LAST_TRACES_SECONDS)


class Watchdog:
    """Watches this process from a separate thread while the block runs.

    All workers stop together: once one has written its stack traces, the others write theirs.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, seconds: float) -> None:
        """
        Args:
            folder: for the stack traces of a stage, shared by all workers.
            seconds: longest time without progress.
        """
        self.folder, self.rank, self.world_size, self.seconds = folder, rank, world_size, seconds
        self._poll = min(2.0, seconds / 4)
        self._allowed = self._allowed_long = longest_allowance(seconds)
        self._doing = "the start"
        self._last, self._idle = time.monotonic(), 0.0
        self._before_end: list[Callable[[], None]] = []
        self._closing = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = self._stack_names()
        # Opened now, as a process that is stuck with Python's lock no longer could.
        frozen = self.folder / f".rank-{self.rank}"
        keep_frozen(frozen)
        self._frozen = frozen.open("w")
        header = self._header("", stalled=True).model_copy(update={"outside": True})
        self._outside = OutsideWatch(self.folder, header.model_dump())
        self._end_after(self._allowed + FROZEN_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._outside.close()
        self._frozen.close()
        Path(self._frozen.name).unlink(missing_ok=True)

    def alive(self, doing: str, *, next_is_long: bool = False) -> None:
        """Reports progress: what was reached, and whether the next step may take several times as
        long."""
        before, self._doing = self._allowed, doing
        self._allowed = self._allowed_long if next_is_long else self.seconds
        self._last = time.monotonic()
        if self._allowed != before:  # else it is soon enough at the next look
            self._outside.alive(doing, silent=self._allowed + FROZEN_SECONDS)

    def before_end(self, call: Callable[[], None]) -> None:
        """Runs `call` before this process is killed, last added first; it may take seconds, and
        can read the stack traces of all workers."""
        self._before_end.insert(0, call)

    @contextmanager
    def hold_errors_at_end(self) -> Iterator[None]:
        """Holds back an error of the block while the watchdog ends this process: all workers end
        at the same time, and a connection that breaks then is not the reason."""
        try:
            yield
        except BaseException:
            if self._ending.is_set():
                self._thread.join()
            raise

    def _watch(self) -> None:
        while not self._closing.wait(self._poll):
            # If a stuck extension never releases Python's lock, a timer in C ends the process.
            self._end_after(self._allowed + FROZEN_SECONDS)
            idle = time.monotonic() - self._last
            self._tell(idle)
            if idle > self._allowed:
                self._end(f"no progress for {idle:.0f} s after {self._doing}", stalled=True)
            elif self._others():
                reason = f"another worker made no progress; this one was at {self._doing}"
                self._end(reason, stalled=False)

    def _tell(self, idle: float) -> None:
        """Says once that nothing happens, where no launcher does."""
        if self.rank == 0 and idle >= STILL_SECONDS > self._idle:
            PROGRESS.info(
                "no progress for %.0f s after %s; workers are killed after %.0f s",
                *(idle, self._doing, self._allowed),
            )
        self._idle = idle

    def _end_after(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._frozen)
        self._outside.alive(self._doing, silent=seconds)

    def _others(self) -> set[str]:
        """Stack traces written since this worker started."""
        try:
            return self._stack_names() - self._known
        except OSError as error:  # e.g. a busy file server; not fatal
            log.warning("%s cannot be read: %s", self.folder, error)
            return set()

    def _stack_names(self) -> set[str]:
        return {name for name in os.listdir(self.folder) if _STACKS_NAME.fullmatch(name)}

    def _end(self, reason: str, *, stalled: bool) -> None:
        """Writes stack traces to the folder and the log, waits for those of others, and exits."""
        self._ending.set()
        self._end_after(2 * (OTHERS_SECONDS + BEFORE_END_SECONDS))
        stamp = time.strftime(STAMP, time.gmtime())
        path = self.folder / f"{stamp}-rank-{self.rank}.txt"
        header = self._header(reason, stalled=stalled)
        # Also exits on a full disk.
        with best_effort(str(path)), storage.open_atomic(str(path)) as file:
            file.write(f"{header.model_dump_json()}\n\n".encode())
            file.flush()
            faulthandler.dump_traceback(file)
        log.error("worker %d: %s; stack traces are in %s", self.rank, reason, path)
        faulthandler.dump_traceback(STDERR)
        deadline = time.monotonic() + OTHERS_SECONDS
        while self._missing() and time.monotonic() < deadline:
            time.sleep(self._poll / 4)
        Path(self._frozen.name).unlink(missing_ok=True)
        # In a thread, so that the wait can be limited.
        thread = threading.Thread(target=self._call_before_end, daemon=True)
        thread.start()
        thread.join(BEFORE_END_SECONDS)
        os._exit(EXIT_CODE)

    def _header(self, reason: str, *, stalled: bool) -> StackHeader:
        return StackHeader(
            rank=self.rank, world_size=self.world_size, stalled=stalled, reason=reason
        )

    def _missing(self) -> int:
        """How many workers have not written stack traces of either kind yet."""
        written = len(self._others())
        with suppress(OSError):  # a worker removes its empty file once it has written traces
            written += sum(path.stat().st_size > 0 for path in self.folder.glob(".rank-*"))
        return self.world_size - written

    def _call_before_end(self) -> None:
        for call in self._before_end:
            try:
                call()
            except Exception as error:  # the process exits regardless
                log.warning("at the end of worker %d: %s", self.rank, error)

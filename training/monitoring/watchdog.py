"""Ends a worker that makes no progress, with the stack traces of all its threads on disk.

A hang is a failure: a worker that waits for a dead or stuck one would wait for ever, and hold its
devices. Ended hard, it is seen by its launcher, whose rules for failures then apply. Knows neither
launcher nor training, only that `alive` must be called now and then.
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
from pathlib import Path
from types import TracebackType
from typing import Self

from training.run_dir.best_effort import best_effort
from training.run_dir.stacks import STAMP, StackHeader, keep_frozen

log = logging.getLogger(__name__)

LONG_FACTOR, LONG_SECONDS = 3.0, 120.0
"""Start-up and first step, which read weights and may compile, and waiting for a checkpoint to be
written are allowed this many times as long, and never less than so many seconds."""
OTHERS_SECONDS = 20.0
"""How long the first worker to notice waits for the others' stack traces."""
LAST_WORDS_SECONDS = 15.0
"""How long what is to be said before the end may take."""
FROZEN_SECONDS = 10.0
"""How much later than other workers one that holds Python's lock is ended: while they wait for its
stack traces."""
EXIT_CODE = 70
_TOLD = re.compile(r"[\d-]+-rank-\d+\.txt")
STDERR = 2
"""As a number: what Python calls so may be an object without a file."""


class Watchdog:
    """Watches this process from a thread of its own while the block runs.

    The workers of a stage stop together: as soon as one has written its stack traces, the others
    write theirs, wherever they are, and all end.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, seconds: float) -> None:
        """
        Args:
            folder: for the stack traces of a stage; all workers see it.
            seconds: longest time without progress.
        """
        self.folder = folder
        self.rank = rank
        self.world_size = world_size
        self.seconds = seconds
        self._poll = min(2.0, seconds / 4)
        self._allowed = self._allowed_at_most = max(LONG_FACTOR * seconds, LONG_SECONDS)
        self._doing = "the start"
        self._last = time.monotonic()
        self._last_words: list[Callable[[], None]] = []
        self._closing = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = self._told()
        # Open already: a process that holds Python's lock could not open it any more.
        frozen = self.folder / f".rank-{self.rank}"
        keep_frozen(frozen)
        self._frozen = frozen.open("w")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._frozen.close()
        Path(self._frozen.name).unlink(missing_ok=True)

    def alive(self, doing: str, *, next_is_long: bool = False) -> None:
        """Progress was made; `doing` says how far, for the message should it be the last."""
        self._doing = doing
        self._allowed = self._allowed_at_most if next_is_long else self.seconds
        self._last = time.monotonic()

    def before_end(self, call: Callable[[], None]) -> None:
        """Has `call` run before this process is ended, the last one added first; it may take
        seconds, and see the stack traces of all workers."""
        self._last_words.insert(0, call)

    @contextmanager
    def speaks_first(self) -> Iterator[None]:
        """Keeps an error of the block where it is while this process is being ended.

        The others end at the same time, so that connections break: an error which is not the
        reason for the end, and must not be told as such.
        """
        try:
            yield
        except BaseException:
            if self._ending.is_set():
                self._thread.join()
            raise

    def _watch(self) -> None:
        while not self._closing.wait(self._poll):
            # This thread needs Python's lock. Where that is never given back, as inside a stuck
            # extension, a timer in C takes its place.
            self._end_after(self._allowed + FROZEN_SECONDS)
            idle = time.monotonic() - self._last
            if idle > self._allowed:
                self._end(f"no progress for {idle:.0f} s after {self._doing}", stalled=True)
            elif self._others():
                reason = f"another worker made no progress; this one was at {self._doing}"
                self._end(reason, stalled=False)

    def _end_after(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._frozen)

    def _others(self) -> set[str]:
        """Stack traces that were not there when this worker started."""
        try:
            return self._told() - self._known
        except OSError as error:  # of a busy file server, say: no reason to end
            log.warning("%s cannot be read: %s", self.folder, error)
            return set()

    def _told(self) -> set[str]:
        return {name for name in os.listdir(self.folder) if _TOLD.fullmatch(name)}

    def _end(self, reason: str, *, stalled: bool) -> None:
        """Writes the traces to the folder and into the log, lets the others do so, and ends."""
        self._ending.set()
        self._end_after(2 * (OTHERS_SECONDS + LAST_WORDS_SECONDS))
        stamp = time.strftime(STAMP, time.gmtime())
        path = self.folder / f"{stamp}-rank-{self.rank}.txt"
        header = StackHeader(
            rank=self.rank, world_size=self.world_size, stalled=stalled, reason=reason
        )
        with best_effort(str(path)):  # ends all the same on a full disk
            partial = path.with_name(f".{path.name}")
            with partial.open("w") as file:
                file.write(f"{header.model_dump_json()}\n\n")
                file.flush()
                faulthandler.dump_traceback(file)
            partial.rename(path)
        log.error("worker %d: %s; stack traces are in %s", self.rank, reason, path)
        faulthandler.dump_traceback(STDERR)
        deadline = time.monotonic() + OTHERS_SECONDS
        while self._silent() and time.monotonic() < deadline:
            time.sleep(self._poll / 4)
        Path(self._frozen.name).unlink(missing_ok=True)
        self._say_last_words()
        os._exit(EXIT_CODE)

    def _silent(self) -> int:
        """How many workers have left no stack traces yet, of whichever kind."""
        told = len(self._others())
        with suppress(OSError):  # a worker removes its empty file when it has another
            told += sum(path.stat().st_size > 0 for path in self.folder.glob(".rank-*"))
        return self.world_size - told

    def _say_last_words(self) -> None:
        # In a thread, which this one need not wait for longer than is allowed.
        words = threading.Thread(target=self._call_all, name="last-words", daemon=True)
        words.start()
        words.join(LAST_WORDS_SECONDS)

    def _call_all(self) -> None:
        for call in self._last_words:
            try:
                call()
            except Exception as error:  # an edge: the process ends all the same
                log.warning("at the end of worker %d: %s", self.rank, error)

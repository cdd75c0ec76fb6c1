"""Turns an output folder into the place of one build at a time, wherever the builds run.

Knows storage only: neither what is built nor by whom.

The lock is a file `build-000001.lock` that exactly one process can create. Its holder renews a time
in it; whoever finds that time old, or the holder's process dead, takes over by creating the next
number, which again only one can. A holder that was only asleep finds its file replaced and stops.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

from datagen import storage
from datagen.errors import FlowmapsrError
from datagen.lock_holder import (
    UNKNOWN,
    Holder,
    described,
    from_bytes,
    is_running,
    machine,
    this_process,
    to_bytes,
)

HEARTBEAT = 10.0
"""Seconds between two signs of life of a holder."""
STALE_AFTER = 60.0
"""Seconds without one after which a holder may be dead."""

_START = "build-"
_NAME = re.compile(rf"{_START}(\d{{6}})\.lock")
_LOG = logging.getLogger(__name__)


class BuildLock:
    """A lock that is held; `check()` between two pieces of work tells whether it still is."""

    def __init__(self, output: str, generation: int, holder: Holder) -> None:
        self._output = output
        self._uri = _lock_uri(output, generation)
        self._generation = generation
        self._holder = holder
        self._taken_by: Holder | None = None
        self._released = threading.Event()
        self._file = threading.Lock()  # heartbeat and release never write at once
        self._thread = threading.Thread(target=self._beat, name="build-lock", daemon=True)

    def check(self) -> None:
        """Raises FlowmapsrError once another build has taken over."""
        if self._taken_by is not None:
            raise FlowmapsrError(
                f"{self._output}: this build was silent for too long and another one "
                f"({described(self._taken_by)}) has taken over; it goes on, this one ends. "
                "Every finished shard is kept"
            )

    def start(self) -> None:
        """Begins to show signs of life."""
        self._thread.start()

    def release(self) -> None:
        """Gives the place free; a storage that cannot be reached leaves a lock that goes stale."""
        self._released.set()
        with self._file:
            if self._taken_by is None:
                _try_to_delete(self._uri)

    def renew(self) -> None:
        """One sign of life, or the discovery that the lock is lost. Raises FlowmapsrError."""
        with self._file:
            if self._released.is_set() or self._taken_by is not None:
                return
            self._taken_by = self._successor()
            if self._taken_by is None:
                self._holder = replace(self._holder, heartbeat=time.time())
                storage.write_bytes(self._uri, to_bytes(self._holder))
                # It may have been taken over while this was written: then nothing must be left.
                self._taken_by = self._successor()
            if self._taken_by is not None and _token_at(self._uri) == self._holder.token:
                _try_to_delete(self._uri)

    def _successor(self) -> Holder | None:
        held = _holders(self._output)
        mine = held.get(self._generation)
        higher = [held[number] for number in sorted(held) if number > self._generation]
        for other in higher:
            if other.replaces == self._holder.token:
                return other
        if mine is None or mine.token != self._holder.token:
            return mine or (higher[-1] if higher else UNKNOWN)
        return None

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT) and self._taken_by is None:
            try:
                self.renew()
            except FlowmapsrError as error:
                _LOG.warning("no sign of life could be given: %s", error)


@contextlib.contextmanager
def build_lock(output: str, *, take_over: bool = False) -> Iterator[BuildLock]:
    """Holds the only lock on `output` (a folder or prefix that need not exist) for the block.

    Released at the end, by an exception and by SIGTERM. A holder whose process is gone is taken
    over at once on the same machine, after a minute without a sign of life elsewhere, and in any
    case with `take_over`. Raises FlowmapsrError naming the holder if the place is taken.
    """
    with _ending_by_exception():
        lock = _acquired(output, take_over=take_over)
        try:
            lock.start()
            yield lock
        finally:
            lock.release()


def is_lock(uri: str) -> bool:
    """Whether a file in an output is a lock; an output with nothing else counts as empty."""
    return _NAME.fullmatch(uri.rsplit("/", 1)[-1]) is not None


def _acquired(output: str, *, take_over: bool) -> BuildLock:
    held = _holders(output)
    newest = max(held, default=0)
    previous = held.get(newest)
    if previous is not None and not take_over and not _is_dead(output, newest, previous):
        raise _refusal(output, previous)
    me = this_process(replaces=previous.token if previous else "")
    generation = newest + 1
    if not storage.create_exclusive(_lock_uri(output, generation), to_bytes(me)):
        raise _refusal(output, _holders(output).get(generation, UNKNOWN))
    return _confirmed(output, generation, me, seen=held)


def _confirmed(output: str, generation: int, me: Holder, *, seen: dict[int, Holder]) -> BuildLock:
    """Looks again: a lock that came after the first look is somebody else's, and alive."""
    known = {other.token for other in seen.values()} | {me.token}
    now = _holders(output)
    for other in now.values():
        if other.token not in known:
            _try_to_delete(_lock_uri(output, generation))
            raise _refusal(output, other)
    for number in now:
        if number < generation:
            _try_to_delete(_lock_uri(output, number))
    return BuildLock(output, generation, me)


def _is_dead(output: str, generation: int, holder: Holder) -> bool:
    """A process of this machine is looked up; others must have been silent, and stay so.

    The second look guards against clocks that differ and against a machine that just woke up.
    """
    if holder.machine == machine() and not is_running(holder):
        return True
    if time.time() - holder.heartbeat <= STALE_AFTER:
        return False
    time.sleep(1.5 * HEARTBEAT)
    return _holders(output).get(generation, holder) == holder


def _lock_uri(output: str, generation: int) -> str:
    return storage.join(output, f"{_START}{generation:06d}.lock")


def _holders(output: str) -> dict[int, Holder]:
    found = {}
    for name in storage.names(output, _START):
        if match := _NAME.fullmatch(name):
            with contextlib.suppress(storage.NotFoundError):  # released since it was listed
                found[int(match[1])] = _read(storage.join(output, name))
    return found


def _read(uri: str) -> Holder:
    return from_bytes(storage.read_bytes(uri))


def _token_at(uri: str) -> str:
    try:
        return _read(uri).token
    except storage.NotFoundError:
        return ""


def _try_to_delete(uri: str) -> None:
    try:
        storage.delete(uri)
    except FlowmapsrError as error:
        _LOG.warning("a lock is left behind and goes stale: %s", error)


def _refusal(output: str, holder: Holder) -> FlowmapsrError:
    silent = max(time.time() - holder.heartbeat, 0.0)
    return FlowmapsrError(
        f"{output}: another build is writing there ({described(holder)}, last sign of life "
        f"{silent:.0f} s ago); wait for it or choose another output. If it is dead, the same "
        f"command takes over {STALE_AFTER:.0f} s after its last sign of life, and at once with "
        "--take-over"
    )


@contextlib.contextmanager
def _ending_by_exception() -> Iterator[None]:
    """SIGTERM ends the block like an exception, unless somebody else already handles it."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)

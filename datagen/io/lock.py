"""Turns an output folder into the place of one build or training at a time, wherever they run.

Knows storage only: neither what is made there nor by whom.

The lock is a file such as `build-000001.lock` that exactly one process can create. Its holder
renews a time in it; whoever finds that time old, or the holder's process dead, takes over by
creating the next number, which again only one can. A holder that was only asleep finds its file
replaced and stops.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock_owner import (
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

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a place is held for, in the words of file names and messages."""

    name: str
    kept: str
    """What is left of work that lost its place."""


BUILD = Work("build", "Every finished shard is kept")
TRAINING = Work("training", "Every checkpoint is kept")
_NAME = re.compile(rf"({BUILD.name}|{TRAINING.name})-(\d{{6}})\.lock")


@dataclass(frozen=True)
class Place:
    """A folder or prefix and the work that only one may do there."""

    output: str
    work: Work

    def lock_uri(self, generation: int) -> str:
        return storage.join(self.output, f"{self.work.name}-{generation:06d}.lock")

    def holders(self) -> dict[int, Holder]:
        """Every lock that lies there, by its number."""
        found = {}
        for name in storage.names(self.output, f"{self.work.name}-"):
            if match := _NAME.fullmatch(name):
                with contextlib.suppress(storage.NotFoundError):  # released since it was listed
                    found[int(match[2])] = _read(storage.join(self.output, name))
        return found


class PlaceLostError(FlowmapsrError):
    """Another process holds the place now: nothing may be written there any more."""


class PlaceLock:
    """A lock that is held; `check()` between two pieces of work tells whether it still is."""

    def __init__(self, place: Place, generation: int, holder: Holder) -> None:
        self._place = place
        self._uri = place.lock_uri(generation)
        self._generation = generation
        self._holder = holder
        self._taken_by: Holder | None = None
        self._released = threading.Event()
        self._file = threading.Lock()  # heartbeat and release never write at once
        self._thread = threading.Thread(target=self._beat, name="place-lock", daemon=True)

    def check(self) -> None:
        """Raises PlaceLostError once another one has taken over."""
        if self._taken_by is not None:
            raise PlaceLostError(
                f"{self._place.output}: this {self._place.work.name} was silent for too long and "
                f"another one ({described(self._taken_by)}) has taken over; it goes on, this one "
                f"ends. {self._place.work.kept}"
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
        held = self._place.holders()
        mine = held.get(self._generation)
        higher = [held[number] for number in sorted(held) if number > self._generation]
        for other in higher:
            if other.replaces == self._holder.token:
                return other
        if mine is None or mine.token != self._holder.token:
            return mine or (higher[-1] if higher else UNKNOWN)
        return None

    def _beat(self) -> None:
        told = ""
        while not self._released.wait(HEARTBEAT) and self._taken_by is None:
            try:
                self.renew()
                told = ""
            except FlowmapsrError as error:
                if str(error) != told:
                    _LOG.warning("no sign of life could be given: %s", error)
                told = str(error)


@contextlib.contextmanager
def place_lock(output: str, work: Work, *, take_over: bool = False) -> Iterator[PlaceLock]:
    """Holds the only lock on `output` (a folder or prefix that need not exist) for the block.

    Released at the end, by an exception and by SIGTERM. A holder whose process is gone is taken
    over at once on the same machine, after a minute without a sign of life elsewhere, and in any
    case with `take_over`. Raises FlowmapsrError naming the holder if the place is taken.
    """
    with _ending_by_exception():
        lock = _acquired(Place(output, work), take_over=take_over)
        try:
            lock.start()
            yield lock
        finally:
            lock.release()


def living_holder(output: str, work: Work) -> Holder | None:
    """Who holds a place, as far as one look can tell; None if nobody does, or a dead one."""
    held = Place(output, work).holders()
    if not held:
        return None
    holder = held[max(held)]
    if holder.machine == machine():
        return holder if is_running(holder) else None
    return holder if time.time() - holder.heartbeat <= STALE_AFTER else None


def is_lock(uri: str) -> bool:
    """Whether a file in an output is a lock; an output with nothing else counts as empty."""
    return _NAME.fullmatch(uri.rsplit("/", 1)[-1]) is not None


def _acquired(place: Place, *, take_over: bool) -> PlaceLock:
    held = place.holders()
    newest = max(held, default=0)
    previous = held.get(newest)
    if previous is not None and not take_over and not _is_dead(place, newest, previous):
        raise _refusal(place, previous)
    me = this_process(replaces=previous.token if previous else "")
    generation = newest + 1
    if not storage.create_exclusive(place.lock_uri(generation), to_bytes(me)):
        raise _refusal(place, place.holders().get(generation, UNKNOWN))
    return _confirmed(place, generation, me, seen=held)


def _confirmed(place: Place, generation: int, me: Holder, *, seen: dict[int, Holder]) -> PlaceLock:
    """Looks again: a lock that came after the first look is somebody else's, and alive."""
    known = {other.token for other in seen.values()} | {me.token}
    now = place.holders()
    for other in now.values():
        if other.token not in known:
            _try_to_delete(place.lock_uri(generation))
            raise _refusal(place, other)
    for number in now:
        if number < generation:
            _try_to_delete(place.lock_uri(number))
    return PlaceLock(place, generation, me)


def _is_dead(place: Place, generation: int, holder: Holder) -> bool:
    """A process of this machine is looked up; others must have been silent, and stay so.

    The second look guards against clocks that differ and against a machine that just woke up.
    """
    if holder.machine == machine() and not is_running(holder):
        return True
    if time.time() - holder.heartbeat <= STALE_AFTER:
        return False
    time.sleep(1.5 * HEARTBEAT)
    return place.holders().get(generation, holder) == holder


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


def _refusal(place: Place, holder: Holder) -> FlowmapsrError:
    silent = max(time.time() - holder.heartbeat, 0.0)
    return FlowmapsrError(
        f"{place.output}: another {place.work.name} is writing there ({described(holder)}, last "
        f"sign of life {silent:.0f} s ago); wait for it or choose another output. If it is dead, "
        f"the same command takes over {STALE_AFTER + 1.5 * HEARTBEAT:.0f} s after its last sign "
        "of life, and at once with --take-over"
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

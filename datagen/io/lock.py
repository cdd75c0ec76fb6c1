"""Keeps an output folder for one build or training at a time, on whichever machines they run.

The lock is a file such as `build-000001.lock` that exactly one process can create. Its owner renews
a time in it. A process that finds this time expired, or the owner dead, takes over by creating the
next number, which again only one can. An owner that was only suspended finds its file replaced and
stops.
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
from datagen.io import lock_owner, storage
from datagen.io.end_signals import END_SIGNALS
from datagen.io.lock_owner import UNKNOWN, LockOwner

HEARTBEAT = 10.0  # seconds between two renewals
STALE_AFTER = 60.0  # seconds without a renewal after which an owner may be dead

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockKind:
    """What an output is locked for, in the words of file names and messages."""

    name: str
    kept: str
    """What is left of work that lost its lock."""


BUILD = LockKind("build", "Every finished shard is kept")
TRAINING = LockKind("training", "Every checkpoint is kept")
BENCHMARK = LockKind("benchmark", "All that was measured is kept")
_NAME = re.compile(rf"({BUILD.name}|{TRAINING.name}|{BENCHMARK.name})-(\d{{6}})\.lock")


@dataclass(frozen=True)
class LockedPath:
    """A folder or prefix and the kind of work that only one process may do there."""

    output: str
    kind: LockKind

    def lock_uri(self, generation: int) -> str:
        return storage.join(self.output, f"{self.kind.name}-{generation:06d}.lock")

    def owners(self) -> dict[int, LockOwner]:
        """The owner of every lock file there, by its number."""
        found = {}
        for name in storage.names(self.output, f"{self.kind.name}-"):
            match = _NAME.fullmatch(name)
            if match and (owner := _read(storage.join(self.output, name))):
                found[int(match[2])] = owner
        return found


class LockLostError(FlowmapsrError):
    """Another process owns the lock now: nothing may be written there any more."""


class OutputLock:
    """A lock that is held; `raise_if_lost()`, between pieces of work, may raise LockLostError."""

    def __init__(self, path: LockedPath, generation: int, owner: LockOwner) -> None:
        self._path = path
        self._uri = path.lock_uri(generation)
        self._generation = generation
        self._owner = owner
        self._taken_by: LockOwner | None = None
        self._released = threading.Event()
        self._file = threading.Lock()  # heartbeat and release never write at once
        self._thread = threading.Thread(target=self._beat, name="output-lock", daemon=True)

    def raise_if_lost(self) -> None:
        if self._taken_by is not None:
            raise LockLostError(
                f"{self._path.output}: this {self._path.kind.name} did not renew its lock in time "
                f"and another one ({lock_owner.describe(self._taken_by)}) has taken over; that one "
                f"continues, this one ends. {self._path.kind.kept}"
            )

    def start(self) -> None:
        self._thread.start()

    def release(self) -> None:
        """Releases the lock; if the storage is unreachable, it expires."""
        self._released.set()
        with self._file:
            if self._taken_by is None:
                _try_to_delete(self._uri)

    def renew(self) -> None:
        """Sends one heartbeat, or finds the lock lost; FlowmapsrError if storage is unreachable."""
        with self._file:
            if self._released.is_set() or self._taken_by is not None:
                return
            self._taken_by = self._successor()
            if self._taken_by is None:
                self._owner = replace(self._owner, heartbeat=time.time())
                storage.write_bytes(self._uri, lock_owner.to_bytes(self._owner))
                # Another process may have taken over during the write: then delete it again.
                self._taken_by = self._successor()
            if self._taken_by is not None:
                current = _read(self._uri)
                if current is not None and current.token == self._owner.token:
                    _try_to_delete(self._uri)

    def _successor(self) -> LockOwner | None:
        owners = self._path.owners()
        mine = owners.get(self._generation)
        higher = [owners[number] for number in sorted(owners) if number > self._generation]
        for other in higher:
            if other.replaces == self._owner.token:
                return other
        if mine is not None and mine.token == self._owner.token:
            return None
        return mine or (higher[-1] if higher else UNKNOWN)

    def _beat(self) -> None:
        warned = ""
        while not self._released.wait(HEARTBEAT) and self._taken_by is None:
            try:
                self.renew()
                warned = ""
            except FlowmapsrError as error:
                if str(error) != warned:
                    log.warning("could not renew the lock: %s", error)
                warned = str(error)


@contextlib.contextmanager
def output_lock(output: str, kind: LockKind, *, take_over: bool = False) -> Iterator[OutputLock]:
    """Holds the only lock on `output` (a folder or prefix that need not exist) for the block.

    Released at the end, by an exception and by a signal. An owner whose process is gone is replaced
    at once on the same machine, after a minute without a heartbeat elsewhere, and in any case with
    `take_over`.

    Raises:
        FlowmapsrError: the output is locked; names the owner.
    """
    with _end_signals_as_exception():
        lock = _acquire(LockedPath(output, kind), take_over=take_over)
        try:
            lock.start()
            yield lock
        finally:
            lock.release()


def living_owner(output: str, kind: LockKind) -> LockOwner | None:
    """Current living owner of a lock, by one look at its file, or None."""
    path = LockedPath(output, kind)
    owners = path.owners()
    if not owners:
        return None
    generation = max(owners)
    owner = owners[generation]
    if owner.machine == lock_owner.machine():
        return owner if lock_owner.is_running(owner) else None
    heartbeat = owner.heartbeat
    if heartbeat > time.time():  # of a clock that is ahead: when its file was written tells more
        heartbeat = storage.modified(path.lock_uri(generation)) or 0.0
    return owner if time.time() - heartbeat <= STALE_AFTER else None


def is_lock(uri: str) -> bool:
    """Whether a file in an output is a lock; an output with nothing else counts as empty."""
    return _NAME.fullmatch(uri.rsplit("/", 1)[-1]) is not None


def _acquire(path: LockedPath, *, take_over: bool) -> OutputLock:
    owners = path.owners()
    newest = max(owners, default=0)
    previous = owners.get(newest)
    if previous is not None and not take_over and not _is_dead(path, newest, previous):
        raise _refusal(path, previous)
    me = lock_owner.this_process(replaces=previous.token if previous else "")
    generation = newest + 1
    if not storage.create_exclusive(path.lock_uri(generation), lock_owner.to_bytes(me)):
        raise _refusal(path, path.owners().get(generation, UNKNOWN))
    return _confirm(path, generation, me, seen=owners)


def _confirm(
    path: LockedPath, generation: int, me: LockOwner, *, seen: dict[int, LockOwner]
) -> OutputLock:
    """Looks again: a lock that appeared after the first look has another, living owner."""
    known = {other.token for other in seen.values()} | {me.token}
    now = path.owners()
    for other in now.values():
        if other.token not in known:
            _try_to_delete(path.lock_uri(generation))
            raise _refusal(path, other)
    for number in now:
        if number < generation:
            _try_to_delete(path.lock_uri(number))
    return OutputLock(path, generation, me)


def _is_dead(path: LockedPath, generation: int, owner: LockOwner) -> bool:
    """Looks up a process of this machine; others must have missed their heartbeat, twice.

    The second look guards against clocks that differ and a machine that just resumed from sleep.
    Where the time of the heartbeat says nothing, as the clock was ahead or the file cannot be read,
    the lock is watched for as long as an owner may be silent.
    """
    if owner.machine == lock_owner.machine() and not lock_owner.is_running(owner):
        return True
    silent = time.time() - owner.heartbeat
    if -HEARTBEAT <= silent <= STALE_AFTER:
        return False
    watched = 1.5 * HEARTBEAT + (STALE_AFTER if silent < 0 else 0)
    log.warning(
        "%s: looking for %.0f s whether its lock is renewed (%s)",
        path.output,
        watched,
        lock_owner.describe(owner),
    )
    end = time.monotonic() + watched
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, HEARTBEAT))
        if path.owners().get(generation, owner) != owner:
            return False
    return True


def _read(uri: str) -> LockOwner | None:
    """The owner in a lock's file; None if it has been released."""
    try:
        return lock_owner.from_bytes(storage.read_bytes(uri))
    except storage.NotFoundError:
        return None


def _try_to_delete(uri: str) -> None:
    try:
        storage.delete(uri)
    except FlowmapsrError as error:
        log.warning("could not delete a lock; it expires: %s", error)


def _refusal(path: LockedPath, owner: LockOwner) -> FlowmapsrError:
    silent = max(time.time() - owner.heartbeat, 0.0)
    return FlowmapsrError(
        f"{path.output}: another {path.kind.name} is writing there ({lock_owner.describe(owner)}, "
        f"last heartbeat {silent:.0f} s ago); wait for it or choose another output. If it is dead, "
        f"the same command takes over {STALE_AFTER + 1.5 * HEARTBEAT:.0f} s after its last "
        "heartbeat, or at once with --take-over"
    )


@contextlib.contextmanager
def _end_signals_as_exception() -> Iterator[None]:
    """Signals that ask to end end the block like an exception, but for those with a handler."""
    main = threading.current_thread() is threading.main_thread()
    ours = [one for one in END_SIGNALS if main and signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, _exit)
    try:
        yield
    finally:
        for one in ours:
            if signal.getsignal(one) is _exit:
                signal.signal(one, signal.SIG_DFL)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)

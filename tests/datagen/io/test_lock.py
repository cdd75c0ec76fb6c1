"""One build per output at a time: races, dead owners, suspended owners, other hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.io import lock, lock_owner, storage
from datagen.io.lock import BUILD, OutputLock, output_lock
from datagen.io.lock_owner import LockOwner
from tests.support.eventually import eventually
from tests.support.s3 import FaultyS3

CONTENDER = """
import sys
from datagen.errors import FlowmapsrError
from datagen.io.lock import BUILD, output_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with output_lock(sys.argv[1], BUILD):
        print("held", flush=True)
        sys.stdin.readline()
except FlowmapsrError as error:
    print(error, flush=True)
"""


@pytest.fixture
def output(root: str) -> str:
    return f"{root}/dataset"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "STALE_AFTER", 0.3)


def _contenders(output: str, count: int = 1) -> list[subprocess.Popen[str]]:
    """Processes that try to lock the output at the same moment."""
    command = [sys.executable, "-c", CONTENDER, output]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in processes:
        assert _printed(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def _printed(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def holder(output: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    (process,) = _contenders(output)
    assert _printed(process) == "held"
    yield process
    process.kill()
    process.wait()


def _locked_path(output: str) -> lock.LockedPath:
    return lock.LockedPath(output, BUILD)


def _leave(output: str, generation: int = 1, **change: object) -> LockOwner:
    """A lock left by an owner on another host."""
    left = replace(
        lock_owner.this_process(replaces=""),
        host="elsewhere",
        machine="elsewhere",
        heartbeat=time.time() - 3600,
        **change,  # type: ignore[arg-type]
    )
    assert storage.create_exclusive(
        _locked_path(output).lock_uri(generation), lock_owner.to_bytes(left)
    )
    return left


def _locks(output: str) -> list[str]:
    return storage.names(output, "build-")


def test_a_second_build_is_refused_and_the_owner_named(output: str) -> None:
    with output_lock(output, BUILD) as held:
        with pytest.raises(FlowmapsrError) as caught, output_lock(output, BUILD):
            pass
        assert f"pid {os.getpid()}" in str(caught.value) and os.uname().nodename in str(
            caught.value
        )
        assert "last heartbeat 0 s ago" in str(caught.value)
        held.raise_if_lost()
        assert _locks(output) == ["build-000001.lock"]
    assert _locks(output) == []
    with output_lock(output, BUILD):
        pass


def test_an_exception_releases(output: str) -> None:
    with pytest.raises(RuntimeError), output_lock(output, BUILD):
        raise RuntimeError
    assert _locks(output) == []


def test_sigterm_releases(output: str, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGTERM)
    assert holder.wait(timeout=60) == 128 + signal.SIGTERM
    assert _locks(output) == []


def test_a_killed_owner_is_replaced_at_once(
    output: str, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_AFTER", 10**6)
    with pytest.raises(FlowmapsrError, match=f"pid {holder.pid}"), output_lock(output, BUILD):
        pass
    holder.kill()
    holder.wait()
    with output_lock(output, BUILD):
        assert _locks(output) == ["build-000002.lock"]
    assert _locks(output) == []


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_processes_exactly_one_wins(tmp_path: Path, stale: bool) -> None:
    output = str(tmp_path / "dataset")
    if stale:
        _leave_dead_process(output)
    processes = _contenders(output, 6)
    said = [_printed(process) for process in processes]
    for process in processes:
        process.communicate("\n")
    assert said.count("held") == 1
    winner = processes[said.index("held")]
    assert all(f"pid {winner.pid}," in text for text in said if text != "held")
    assert _locks(output) == []


def _leave_dead_process(output: str) -> None:
    (process,) = _contenders(output)
    assert _printed(process) == "held"
    process.kill()
    process.wait()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_threads_exactly_one_wins(output: str, quick: None, stale: bool) -> None:
    for _ in range(5):
        if stale:
            _leave(output)
        won: list[OutputLock] = []
        refused: list[FlowmapsrError] = []
        barrier, done = threading.Barrier(8), threading.Event()

        def contend(
            won: list[OutputLock] = won,
            refused: list[FlowmapsrError] = refused,
            barrier: threading.Barrier = barrier,
            done: threading.Event = done,
        ) -> None:
            barrier.wait()
            try:
                with output_lock(output, BUILD) as held:
                    won.append(held)
                    done.wait(120)
            except FlowmapsrError as error:
                refused.append(error)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda won=won, refused=refused: len(won) + len(refused) == 8)
        done.set()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(refused) == 7
        assert _locks(output) == []


def test_an_owner_elsewhere_keeps_its_lock_while_it_renews_it(output: str, quick: None) -> None:
    left = _leave(output)
    stop, start = threading.Event(), time.monotonic()

    def live() -> None:
        while not stop.wait(0.02):
            alive = replace(left, heartbeat=left.heartbeat + time.monotonic() - start)
            storage.write_bytes(_locked_path(output).lock_uri(1), lock_owner.to_bytes(alive))

    thread = threading.Thread(target=live)  # its clock is an hour behind
    thread.start()
    try:
        with pytest.raises(FlowmapsrError, match="host elsewhere"), output_lock(output, BUILD):
            pass
    finally:
        stop.set()
        thread.join()
    with output_lock(output, BUILD):
        assert _locks(output) == ["build-000002.lock"]


def test_a_suspended_owner_detects_that_it_lost_the_lock(
    output: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.OutputLock, "start", lambda self: None)  # never renews
    with output_lock(output, BUILD) as asleep:
        time.sleep(0.4)
        with output_lock(output, BUILD) as awake:
            asleep.raise_if_lost()
            asleep.renew()
            with pytest.raises(FlowmapsrError, match=f"pid {os.getpid()}.* has taken over"):
                asleep.raise_if_lost()
            awake.renew()
            awake.raise_if_lost()
            assert _locks(output) == ["build-000002.lock"]
    assert _locks(output) == []


def test_the_heartbeat_detects_a_lost_lock(output: str, quick: None) -> None:
    with output_lock(output, BUILD) as lost, output_lock(output, BUILD, take_over=True) as held:
        with pytest.raises(FlowmapsrError, match="has taken over"):
            eventually(lost.raise_if_lost, seconds=30)
        held.raise_if_lost()


def test_heartbeats_reach_the_file_and_survive_storage_errors(
    faulty_s3: FaultyS3, quick: None
) -> None:
    output = f"s3://{faulty_s3.bucket}/dataset"
    with output_lock(output, BUILD) as held:
        faulty_s3.fail("status", "PUT", times=5, status=403, code="AccessDenied")
        faulty_s3.fail("reset", "PUT", times=5)
        eventually(lambda: sum(fault.times for fault in faulty_s3.faults) == 0)
        before = _locked_path(output).owners()[1].heartbeat
        eventually(lambda: _locked_path(output).owners()[1].heartbeat != before)
        held.raise_if_lost()


def test_a_lock_created_after_the_first_look_wins(output: str) -> None:
    seen = {1: _leave(output)}
    storage.delete(_locked_path(output).lock_uri(1))
    fresh = _leave(output)  # the stale one was taken over, ended, and a third build started
    me = lock_owner.this_process(replaces=seen[1].token)
    assert storage.create_exclusive(_locked_path(output).lock_uri(2), lock_owner.to_bytes(me))
    with pytest.raises(FlowmapsrError, match="host elsewhere"):
        lock._confirm(_locked_path(output), 2, me, seen=seen)
    assert _locked_path(output).owners() == {1: fresh}


@pytest.mark.parametrize("unreadable", [True, False])
def test_a_lock_whose_time_says_nothing_is_kept_while_it_changes(
    output: str, quick: None, unreadable: bool
) -> None:
    """That of a clock that was an hour ahead, and one that another version has written."""
    uri = _locked_path(output).lock_uri(1)
    ahead = _leave(output)
    stop = threading.Event()

    def renew() -> None:
        for second in count():
            beat = replace(ahead, heartbeat=time.time() + 3600 + second)
            data = b"{%d" % second if unreadable else lock_owner.to_bytes(beat)
            storage.write_bytes(uri, data)
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=renew)
    thread.start()
    eventually(lambda: _locked_path(output).owners()[1].heartbeat > time.time())
    try:
        owner = "host unknown.*--take-over" if unreadable else "host elsewhere"
        with pytest.raises(FlowmapsrError, match=owner), output_lock(output, BUILD):
            pass
    finally:
        stop.set()
        thread.join()
    begun = time.monotonic()
    with output_lock(output, BUILD):  # its owner is dead now
        assert _locks(output) == ["build-000002.lock"]
        assert time.monotonic() - begun > lock.STALE_AFTER


def test_the_living_owner_is_told_by_its_file_where_its_clock_was_ahead(output: str) -> None:
    uri = _locked_path(output).lock_uri(1)
    ahead = replace(_leave(output), heartbeat=time.time() + 3600)
    storage.write_bytes(uri, lock_owner.to_bytes(ahead))
    assert lock.living_owner(output, BUILD) == ahead
    if not storage.is_remote(uri):
        os.utime(uri, (time.time() - lock.STALE_AFTER - 5,) * 2)
        assert lock.living_owner(output, BUILD) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"a": 1}'])
def test_an_unreadable_lock_can_be_taken_over_at_once(output: str, content: bytes) -> None:
    storage.write_bytes(_locked_path(output).lock_uri(1), content)
    with output_lock(output, BUILD, take_over=True):
        assert _locks(output) == ["build-000002.lock"]


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    output = str(tmp_path)
    mine = lock_owner.this_process(replaces="")
    assert lock_owner.is_running(mine)
    other = replace(mine, process_started=mine.process_started - 100)
    assert not lock_owner.is_running(other)
    storage.create_exclusive(_locked_path(output).lock_uri(1), lock_owner.to_bytes(other))
    with output_lock(output, BUILD):
        pass


def test_an_output_that_cannot_be_written_is_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(FlowmapsrError, match="choose another location"),
        output_lock(str(tmp_path / "file" / "dataset"), BUILD),
    ):
        pass


def test_locks_are_distinguished_from_other_files(output: str) -> None:
    with output_lock(output, BUILD):
        found = storage.list_files(output)
        assert [lock.is_lock(uri) for uri in found] == [True]
        assert json.loads(storage.read_bytes(found[0]))["pid"] == os.getpid()
    assert not lock.is_lock(f"{output}/build-1.lock") and not lock.is_lock("s3://b/plan.json")

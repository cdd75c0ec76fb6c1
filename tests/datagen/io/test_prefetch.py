"""Work done ahead by several threads comes in order, no further ahead than allowed, and ends."""

from __future__ import annotations

import itertools
import threading

import pytest

from datagen.io.prefetch import WorkerThreads, read_ahead


def test_results_keep_their_order() -> None:
    """The first call waits for the third one."""
    third = threading.Event()

    def work(number: int) -> int:
        if number == 2:
            third.set()
        if number == 0:
            assert third.wait(60)
        return number * number

    results = read_ahead(iter(range(6)), work, threads=3, ahead=4)
    assert list(results) == [0, 1, 4, 9, 16, 25]


def test_no_more_is_planned_than_allowed() -> None:
    planned = []

    def plans() -> itertools.count[int]:
        for number in itertools.count():
            planned.append(number)
            yield number

    results = read_ahead(plans(), str, threads=2, ahead=3)
    assert next(results) == "0" and planned == [0, 1, 2, 3]
    assert next(results) == "1" and planned == [0, 1, 2, 3, 4]
    results.close()


def test_an_error_is_raised_in_its_place() -> None:
    results = read_ahead(iter((1, 2, 0, 4)), lambda number: 8 // number, threads=2, ahead=2)
    assert [next(results), next(results)] == [8, 4]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_threads_that_are_stopped_drop_waiting_work() -> None:
    begun, proceed = threading.Event(), threading.Event()

    def work(number: int) -> int:
        begun.set()
        proceed.wait(60)
        return number

    crew = WorkerThreads(work, threads=1, name="test")
    first, second = crew.submit(1), crew.submit(2)
    assert begun.wait(60)
    crew.stop(patience=0)
    proceed.set()
    assert first.result(60) == 1 and second.cancelled()

"""Runs calls ahead of time on several threads (or a cluster) and returns their results in order.

A call that hangs cannot keep the process alive.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Pending = TypeVar("Pending")
Result = TypeVar("Result")


class WorkerThreads(Generic[Item, Result]):
    """Threads that call one function for each submitted item, in the order of submission."""

    def __init__(self, function: Callable[[Item], Result], *, threads: int, name: str) -> None:
        self._function = function
        self._queue: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        # A thread still inside torch when the interpreter ends would crash the process.
        atexit.register(self.stop)

    def submit(self, item: Item) -> Future[Result]:
        future: Future[Result] = Future()
        self._queue.put((item, future))
        return future

    def stop(self, *, patience: float = 5.0) -> None:
        """Cancels waiting items; a call that does not end in `patience` seconds is abandoned."""
        atexit.unregister(self.stop)
        with contextlib.suppress(queue.Empty):
            while (entry := self._queue.get_nowait()) is not None:
                entry[1].cancel()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            item, future = entry
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._function(item))
                except BaseException as error:  # re-raised where the result is used
                    future.set_exception(error)


def read_ahead(
    items: Iterable[Item], function: Callable[[Item], Result], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`function(item)` of each item, in order, with up to `ahead` results prefetched.

    Raises:
        Exception: what `function` raises, at the item's turn.
    """
    workers = WorkerThreads(function, threads=threads, name="read-ahead")
    try:
        yield from in_order(items, workers.submit, Future.result, ahead=ahead)
    finally:
        workers.stop()


def in_order(
    items: Iterable[Item],
    submit: Callable[[Item], Pending],
    result: Callable[[Pending], Result],
    *,
    ahead: int,
) -> Iterator[Result]:
    """`result(submit(item))` of each item in order, with up to `ahead` more submitted."""
    waiting: deque[Pending] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > ahead:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())

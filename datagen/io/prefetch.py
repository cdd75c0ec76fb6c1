"""Calls to their results in the same order, worked on ahead of time by several threads.

Knows nothing of what is called. A call that hangs cannot keep the process alive.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

Plan = TypeVar("Plan")
Result = TypeVar("Result")


class WorkerThreads(Generic[Plan, Result]):
    """Threads that do the same work for one plan after the other."""

    def __init__(self, work: Callable[[Plan], Result], *, threads: int, name: str) -> None:
        self._work = work
        self._todo: queue.SimpleQueue[tuple[Plan, Future[Result]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        # A thread that the interpreter's end catches inside torch takes the process down with it.
        atexit.register(self.stop)

    def submit(self, plan: Plan) -> Future[Result]:
        future: Future[Result] = Future()
        self._todo.put((plan, future))
        return future

    def stop(self, *, patience: float = 5.0) -> None:
        """Cancels the plans still waiting, and lets the threads end what they are at.

        Args:
            patience: seconds to wait for that; a read that hangs is left behind.
        """
        atexit.unregister(self.stop)
        with contextlib.suppress(queue.Empty):
            while (item := self._todo.get_nowait()) is not None:
                item[1].cancel()
        for _ in self._threads:
            self._todo.put(None)
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self) -> None:
        while (item := self._todo.get()) is not None:
            plan, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._work(plan))
                except BaseException as error:  # handed to whoever waits for the result
                    future.set_exception(error)


def read_ahead(
    plans: Iterator[Plan], work: Callable[[Plan], Result], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`work(plan)` of each plan, in order, whatever the number of threads; raises what it raises.

    Args:
        ahead: most results that are waiting or in the making while one is in use.
    """
    crew = WorkerThreads(work, threads=threads, name="read-ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for plan in plans:
            waiting.append(crew.submit(plan))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        crew.stop()

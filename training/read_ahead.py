"""Calls to their results in the same order, worked on ahead of time by several threads.

Knows nothing of what is called. Threads are daemons: a read that hangs cannot keep a process alive.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

Plan = TypeVar("Plan")
Result = TypeVar("Result")


class Crew(Generic[Plan, Result]):
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

    def submit(self, plan: Plan) -> Future[Result]:
        future: Future[Result] = Future()
        self._todo.put((plan, future))
        return future

    def stop(self) -> None:
        """Cancels the plans still waiting, and lets the threads end after what they are at."""
        with contextlib.suppress(queue.Empty):
            while (item := self._todo.get_nowait()) is not None:
                item[1].cancel()
        for _ in self._threads:
            self._todo.put(None)

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
    crew = Crew(work, threads=threads, name="read-ahead")
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

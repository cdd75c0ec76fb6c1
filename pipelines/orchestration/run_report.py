"""What a flow run says on its Prefect page: lines in its log, and the message of its last state.

Lines are queued and sent by a thread of Prefect's own: a lost server never holds up the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from inspect import signature
from typing import TypeVar, cast

from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed

R = TypeVar("R")
T = TypeVar("T")

PACKAGES = ("datagen", "training", "pipelines")
"""Their warnings are shown in the log of the run."""
_CONCLUSIONS: ContextVar[list[str]] = ContextVar("conclusions")


def reported(work: Callable[[R], T]) -> Callable[[R], T]:
    """The function of a flow; its warnings and its conclusion are shown on the run's page."""

    @wraps(work)
    def run(recipe: R) -> T:
        conclusions: list[str] = []
        token = _CONCLUSIONS.set(conclusions)
        try:
            with _warnings_shown():
                value = work(recipe)
        except (KeyboardInterrupt, TerminationSignal):
            _log(logging.WARNING, "stopped; what is finished is kept, and the next run continues")
            raise
        finally:
            _CONCLUSIONS.reset(token)
        message = "; ".join(conclusions) or None
        say(message or "done")
        # Prefect takes the message from this state, and returns its data to the caller.
        return cast(T, Completed(message=message, data=value))

    # Types instead of their names, which Prefect would look up in this file.
    run.__signature__ = signature(work, eval_str=True)  # type: ignore[attr-defined]
    return run


def conclude(message: str) -> None:
    """Sets the message of the last state of the current flow run, if it is completed."""
    conclusions = _CONCLUSIONS.get(None)
    if conclusions is not None:
        conclusions[:] = [message]


def say(line: str) -> None:
    """Adds a line to the log of the current flow run, if there is one."""
    _log(logging.INFO, line)


class Tenths:
    """Says how far the work is, once for each tenth of it that is done from now on."""

    def __init__(self, percent: float) -> None:
        self._said = int(percent / 10)

    def reach(self, percent: float, text: str) -> None:
        """Says the `text` if another tenth is done."""
        if int(percent / 10) > self._said:
            self._said = int(percent / 10)
            say(f"{10 * self._said} %: {text}")


def _log(level: int, line: str) -> None:
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        flow_run_logger(context.flow_run, context.flow).log(level, line)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Shows warnings of the whole process, from whatever thread, in the log of the current run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    handler = APILogHandler(logging.WARNING)
    handler.addFilter(partial(_mark, run=str(context.flow_run.id)))
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _mark(record: logging.LogRecord, *, run: str) -> bool:
    """Names the run that the record belongs to."""
    record.flow_run_id = run
    return True

"""What a flow run says on its Prefect page: lines in its log, and what it did in the end, as its
last state and its name.

All of it is sent by other threads: a lost server never holds up the work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache, partial, wraps
from inspect import signature
from textwrap import shorten
from typing import TypeVar, cast

from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed, Failed

from datagen.errors import FlowmapsrError, first_line
from pipelines.terminal.doing import PACKAGES

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger(__name__)

STOPPED = "stopped; what is finished is kept, and the next run continues"
LONGEST_NAME = 120
SUMMARY_SECONDS = 15.0
"""How long finished work waits for its page."""
_MESSAGE: ContextVar[str | None] = ContextVar("message", default=None)


def reported(work: Callable[[R], T]) -> Callable[[R], T]:
    """The function of a flow; its log and what it did are shown on the run's page."""

    @wraps(work)
    def run(recipe: R) -> T:
        before = _MESSAGE.set(None)
        try:
            with _log_shown():
                value = work(recipe)
            say(_MESSAGE.get() or "done")
            # Prefect takes the message from this state, and returns its data to the caller.
            return cast(T, Completed(message=_MESSAGE.get(), data=value))
        except FlowmapsrError as error:
            tell(str(error))
            # Raised to the caller like any error, but Prefect logs its text without a traceback.
            return cast(T, Failed(message=str(error), data=error))
        except (KeyboardInterrupt, SystemExit, TerminationSignal):
            tell(STOPPED)
            say(STOPPED, level=logging.WARNING)
            raise
        finally:
            _MESSAGE.reset(before)

    # Types instead of their names, which Prefect would look up in this file.
    run.__signature__ = signature(work, eval_str=True)  # type: ignore[attr-defined]
    return run


def say(line: str, *, level: int = logging.INFO) -> None:
    """Adds a line to the log of the current flow run, if there is one."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        flow_run_logger(context.flow_run, context.flow).log(level, line)


def tell(message: str, add: Callable[[], object] = lambda: None) -> None:
    """Says what the current flow run did, and adds artifacts; waits for Prefect some seconds.

    The message is in its last state and in its name, as Prefect's list of runs shows no messages.
    """
    _MESSAGE.set(message)
    run = _current_run()
    if run is None:
        return
    name = shorten(f"{run.name}: {message.partition(';')[0]}", LONGEST_NAME, placeholder=" ...")

    def work() -> None:
        try:
            with get_client(sync_client=True) as client:
                client.update_flow_run(run.id, name=name)
            add()
        except Exception as error:  # logged here: the work is complete without a page
            warn(first_line(error))

    thread = side_thread(work, name="prefect-artifacts")
    thread.join(timeout=SUMMARY_SECONDS)
    if thread.is_alive():
        log.warning("Prefect accepts the summary of the run too slowly; not waiting for it")


def side_thread(work: Callable[[], None], *, name: str) -> threading.Thread:
    """A started daemon thread that sees the Prefect run of its starter."""
    thread = threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


@cache
def warn(reason: str) -> None:
    """Logs a failure of Prefect, once for each reason."""
    log.warning(
        "Prefect does not answer (%s): continuing without it, its pages may be out of date", reason
    )


def _current_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None


@contextmanager
def _log_shown() -> Iterator[None]:
    """Shows what our packages log, in whatever thread, in the log of the current run."""
    run = _current_run()
    if run is None:
        yield
        return
    handler = APILogHandler()
    handler.addFilter(partial(_mark, run=str(run.id)))
    loggers = [logging.getLogger(name) for name in PACKAGES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _mark(record: logging.LogRecord, *, run: str) -> bool:
    """Names the run that the record belongs to."""
    record.flow_run_id = run
    return True

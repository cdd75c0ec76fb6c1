"""Runs work inside Prefect so that the work is done exactly once even when Prefect fails around it.

Prefect shows and schedules; what was made is told by the files alone. Knows no dataset and no run.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import cache
from typing import Generic, TypeVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import get_current_settings

from datagen.errors import FlowmapsrError, first_line
from datagen.records import Settings
from pipelines.terminal.signals import Terminated

log = logging.getLogger(__name__)

T = TypeVar("T")


class Once(Generic[T]):
    """Work that is run by its first call; later calls return or raise the same."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self.failure: BaseException | None = None

    @property
    def started(self) -> bool:
        return bool(self._results) or self.failure is not None

    def __call__(self) -> T:
        if not self.started:
            try:
                self._results.append(self._work())
            except BaseException as failure:  # kept for whoever catches what Prefect makes of it
                self.failure = failure
                raise
        if self.failure is not None:
            raise self.failure
        return self._results[0]


def despite_prefect(work: Once[T], through: Callable[[], object]) -> T:
    """Runs `work` by `through`, a Prefect task that calls it, or else without Prefect.

    Raises:
        BaseException: what `work` itself raised, never what Prefect raised.
    """
    try:
        through()
    except Exception as error:  # the edge to Prefect: any failure that is not the work's own
        _raise_own_failure(work)
        warn(error)
    return work()


def station(name: str, work: Callable[[], T]) -> T:
    """One step of a flow as a Prefect task of that name."""
    once = Once(work)

    @task(name=name, cache_policy=NO_CACHE)
    def run() -> T:
        return once()

    return despite_prefect(once, run)


def run_recipe(recipe: Settings, work: Callable[[], T], *, name: str, run_name: str) -> T:
    """Work on a recipe as a Prefect flow; once begun, it ends well even if Prefect does not."""
    once = Once(work)

    @flow(name=name, flow_run_name=run_name)
    def run(recipe: Settings) -> T:
        return once()

    return run_flow(once, lambda: run(recipe))


def is_deployed() -> bool:
    """Whether this runs in a Prefect worker, whose working folder vanishes afterwards."""
    # `prefect.runtime` would ask the server, which may be gone.
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run is not None and run.deployment_id is not None


def run_flow(work: Once[T], flow: Callable[[], object]) -> T:
    """`despite_prefect` for a whole flow, which must at least be able to start.

    Raises:
        FlowmapsrError: Prefect did not take the run; nothing was begun.
        Terminated: SIGTERM, which Prefect turns into a signal of its own.
    """
    try:
        flow()
    except TerminationSignal as stop:
        raise Terminated from stop
    except Exception as error:  # the edge to Prefect, as above
        _raise_own_failure(work)
        if not work.started:
            raise FlowmapsrError(refusal(error)) from error
        warn(error)
    return work()


def _raise_own_failure(work: Once[T]) -> None:
    if isinstance(work.failure, TerminationSignal):
        raise Terminated from work.failure
    if work.failure is not None:
        raise work.failure


def warn(error: Exception) -> None:
    """Says that Prefect failed, once for each way in which it does."""
    _warn_once(first_line(error))


@cache
def _warn_once(reason: str) -> None:
    log.warning(
        "Prefect does not answer (%s): the work goes on without it, and its pages may stay behind",
        reason,
    )


def refusal(error: Exception) -> str:
    """What to do about a Prefect that does not even take a call."""
    url = get_current_settings().api.url
    if url is None:
        return (
            f"Prefect's own server did not start ({first_line(error)}); look for a full disk or "
            "too little memory, or set PREFECT_API_URL to a running server"
        )
    return (
        f"Prefect at PREFECT_API_URL={url} does not answer as it should ({first_line(error)}); "
        "start the server, correct the variable, or unset it to run without a server"
    )


def side_thread(work: Callable[[], None], *, name: str) -> threading.Thread:
    """A started daemon thread that sees the Prefect run of its starter."""
    thread = threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


def artifact_slug(location: str) -> str:
    """Name of a dataset or run on Prefect's pages, unique to its location.

    `/data/My Set` -> `my-set-1f0c2a9b`: lower case letters, digits and dashes only.
    """
    path = location.rstrip("/")
    last = path.rsplit("/", 1)[-1].lower()
    words = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:40].strip("-")
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest

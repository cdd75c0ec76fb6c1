"""Runs work inside Prefect so that it is done exactly once even if Prefect fails around it.

Prefect displays and schedules; files are the only source of truth.
"""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from functools import cache, partial
from inspect import unwrap
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import httpx
from prefect import Flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.logging.handlers import APILogWorker
from prefect.settings import get_current_settings

from datagen.errors import FlowmapsrError, first_line
from pipelines.environment import how_busy
from pipelines.orchestration.run_report import reported, warn
from pipelines.servers import PREFECT, require_answer
from pipelines.terminal.children import end_children_with_this_process
from pipelines.terminal.doing import doing
from pipelines.terminal.process_edge import Terminated

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

SERVER_LOG = "own-server.log"
"""In Prefect's home: what the server says that runs for the length of a command."""


def guarded(flow: Flow[[R], T], recipe: R, work: Callable[[], T] | None = None) -> T:
    """Runs `flow` with `recipe`, or does other `work` as a run of that flow.

    Prefect has to start the run; if it fails after that, the work continues and its result counts.

    Raises:
        FlowmapsrError: Prefect did not accept the run; nothing was started.
        Terminated: SIGTERM, which Prefect turns into its own exception.
        BaseException: what the work raised, never what Prefect made of it.
    """
    if not is_deployed():
        _hide_lost_logs()
    url = get_current_settings().api.url
    if url is None:
        _keep_server_apart()
    elif not is_deployed():  # a profile of Prefect's may name it, too, and not the variable
        require_answer(PREFECT, url)
    once = _Once(work or partial(unwrap(flow.fn), recipe))
    run = copy(flow)
    run.fn = reported(once.run_with)
    try:
        _run(run, recipe, once, again=url is None)
    except TerminationSignal as stop:
        raise Terminated from stop
    except Exception as error:  # Prefect's failure, unless the work failed too
        once.reraise()
        if not once.started:
            raise FlowmapsrError(refusal(error)) from error
        warn(first_line(error))
    return once.run()


def _run(flow: Flow[[R], T], recipe: R, once: _Once[T], *, again: bool) -> None:
    """Runs the flow; `again` if Prefect fails before the work has begun, as its own server does on
    an overloaded machine."""
    try:
        flow(recipe)
    except Exception as error:
        if once.started or not again:
            raise
        log.warning(
            "Prefect's own server did not start (%s); %s. Once more", first_line(error), how_busy()
        )
        _end_own_server()
        _run(flow, recipe, once, again=False)


def task_step(name: str, work: Callable[[], T]) -> T:
    """Does `work` as a Prefect task of that name, or without Prefect if it fails.

    Raises:
        BaseException: what `work` raised, never what Prefect made of it.
    """
    once = _Once(work)
    try:
        task(name=name, cache_policy=NO_CACHE)(once.run)()
    except Exception as error:  # Prefect's failure, unless the work failed too
        once.reraise()
        warn(first_line(error))
    return once.run()


@cache
def _hide_lost_logs() -> None:
    """Prefect prints every batch of logs that a lost server did not get; `warn` says it once."""

    async def send(worker: APILogWorker, logs: list[dict[str, Any]]) -> None:
        with suppress(httpx.HTTPError, PrefectException):
            await worker._client.create_logs(logs)

    APILogWorker._handle_batch = send  # type: ignore[assignment,method-assign]


@cache
def _keep_server_apart() -> None:
    """Prefect's own server gets no Ctrl-C before the work is saved, and ends with this process.

    It writes to a file: whoever reads the command's output does not wait for a server.
    """
    from prefect.server.api import server  # heavy: not if a server is running already

    doing("starting Prefect's own server")
    end_children_with_this_process()
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    file = (home / SERVER_LOG).open("ab")
    popen = partial(
        subprocess.Popen,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        start_new_session=True,
    )
    own = SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    server.subprocess = own  # type: ignore[assignment]


def _end_own_server() -> None:
    """Ends a server that did not start in time: it would take the processor from the next one."""
    from prefect.server.api.server import SubprocessASGIServer

    SubprocessASGIServer().stop()


class _Once(Generic[T]):
    """Work that is run by the first call; later calls return or raise the same."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._end: Future[T] = Future()

    @property
    def started(self) -> bool:
        return self._end.done()

    def run(self) -> T:
        if not self.started:
            try:
                self._end.set_result(self._work())
            except BaseException as failure:  # kept because Prefect wraps it
                # Ray makes a SystemError of what the handler of a signal raises.
                is_signal = isinstance(failure, SystemError) and failure.__cause__ is not None
                self._end.set_exception(failure.__cause__ if is_signal else failure)
        return self._end.result()

    def run_with(self, recipe: Any) -> T:
        """`run` with the signature of a flow; Prefect shows the recipe on the run's page."""
        return self.run()

    def reraise(self) -> None:
        """Raises the failure of the work, if it failed."""
        failure = self._end.exception() if self.started else None
        if isinstance(failure, TerminationSignal):
            raise Terminated from failure
        if failure is not None:
            raise failure


def is_deployed() -> bool:
    """Whether this runs in a Prefect worker, whose working folder is deleted afterwards."""
    # `prefect.runtime` would ask the server, which may be gone.
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run is not None and run.deployment_id is not None


def refusal(error: Exception) -> str:
    """What to do about a Prefect that does not even accept a call."""
    url = get_current_settings().api.url
    if url is None:
        said = get_current_settings().home / SERVER_LOG
        return (
            f"Prefect's own server did not start, twice ({first_line(error)}); {how_busy()}. If "
            "that is too much, wait for other work to end and run the same command again. See "
            f"also {said}, or set PREFECT_API_URL to a running server"
        )
    return (
        f"Prefect at PREFECT_API_URL={url} does not answer as it should ({first_line(error)}); "
        "start the server, correct the variable, or unset it to run without a server"
    )


def artifact_slug(location: str) -> str:
    """Name of a dataset or run on Prefect's pages, unique to its location.

    `/data/My Set` -> `my-set-1f0c2a9b`: lower case letters, digits and dashes only.
    """
    path = location.rstrip("/")
    last = path.rsplit("/", 1)[-1].lower()
    words = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:40].strip("-")
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest

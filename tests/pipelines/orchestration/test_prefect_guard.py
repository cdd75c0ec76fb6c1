"""Work whose Prefect fails before, during or after it: done once, and its own failures kept."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from prefect.exceptions import TerminationSignal

from datagen.errors import FlowmapsrError
from pipelines.orchestration.guard import Once, despite_prefect, run_flow
from pipelines.terminal.signals import Terminated

Runner = Callable[[Once[int], Callable[[], object]], int]


class Work:
    """Counts its calls, and ends as it is told."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.calls = 0
        self._failure = failure

    def __call__(self) -> int:
        self.calls += 1
        if self._failure is not None:
            raise self._failure
        return 7


def gone() -> None:
    raise httpx.ConnectError("no server")


@pytest.mark.parametrize("run", [despite_prefect, run_flow])
def test_prefect_failing_after_the_work_changes_nothing(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()
    once = Once(work)

    def through() -> None:
        once()
        raise httpx.ConnectError(f"gone after {run.__name__}")

    assert run(once, through) == 7
    assert work.calls == 1
    assert f"gone after {run.__name__}" in caplog.text


def test_a_task_that_cannot_start_is_done_without_prefect() -> None:
    work = Work()
    assert despite_prefect(Once(work), gone) == 7
    assert work.calls == 1


def test_a_flow_that_cannot_start_is_refused_and_names_the_variable() -> None:
    work = Work()
    with pytest.raises(
        FlowmapsrError, match="(?s)no server.*PREFECT_API_URL|PREFECT_API_URL.*no server"
    ):
        run_flow(Once(work), gone)
    assert work.calls == 0


@pytest.mark.parametrize("run", [despite_prefect, run_flow])
@pytest.mark.parametrize("failure", [FlowmapsrError("bad photo"), KeyboardInterrupt()])
def test_what_the_work_raises_is_neither_masked_nor_tried_again(
    run: Runner, failure: BaseException
) -> None:
    work = Work(failure)
    once = Once(work)

    def through() -> None:
        try:
            once()
        finally:
            gone()  # as the flow engine does when it cannot report the failure

    with pytest.raises(type(failure)) as raised:
        run(once, through)
    assert raised.value is failure
    assert work.calls == 1


@pytest.mark.parametrize("reported", [True, False])
def test_sigterm_in_a_flow_ends_the_command_as_sigterm(reported: bool) -> None:
    once = Once(Work(TerminationSignal(15)))

    def through() -> None:
        try:
            once()
        finally:
            if not reported:
                gone()

    with pytest.raises(Terminated):
        run_flow(once, through)

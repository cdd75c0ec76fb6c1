"""Prefect fails before, during or after the work: it is done once, and its errors are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from datagen.errors import FlowmapsrError
from pipelines.orchestration import guard, run_report
from pipelines.orchestration.guard import artifact_slug, guarded, task_step
from pipelines.terminal.process_edge import Terminated


class Work:
    """Counts its calls and returns or fails as asked."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.calls = 0
        self._failure = failure

    def __call__(self) -> int:
        self.calls += 1
        if self._failure is not None:
            raise self._failure
        return 7


class FakeFlow:
    """A flow, or a task, around which Prefect fails: before the work or after it."""

    def __init__(self, *, before: bool = False, after: bool = True) -> None:
        self.fn: Callable[..., Any] = lambda recipe: None
        self._before, self._after = before, after

    def __call__(self, *recipe: object) -> Any:
        if self._before:
            raise httpx.ConnectError("no server")
        try:
            return self.fn(*recipe)
        finally:
            if self._after:
                raise httpx.ConnectError(f"gone after {recipe}")


def _as_flow(work: Callable[[], int], flow: FakeFlow) -> int:
    return guarded(flow, "recipe", work)  # type: ignore[arg-type]


def _as_task(work: Callable[[], int], flow: FakeFlow) -> int:
    def task(**_: object) -> Callable[[Any], Any]:
        def decorate(run: Callable[..., Any]) -> FakeFlow:
            flow.fn = run
            return flow

        return decorate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "task", task)
        return task_step("step", work)


RUNNERS = pytest.mark.parametrize("run", [_as_flow, _as_task])


@RUNNERS
def test_prefect_failing_after_the_work_changes_nothing(
    run: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    run_report.warn.cache_clear()
    work = Work()
    assert run(work, FakeFlow()) == 7
    assert work.calls == 1
    assert "Prefect does not answer (gone after" in caplog.text


def test_without_other_work_the_flow_itself_is_run_and_stays_unchanged() -> None:
    flow = FakeFlow()
    flow.fn = body = lambda recipe: recipe + 1
    assert guarded(flow, 3) == 4  # type: ignore[arg-type, comparison-overlap]
    assert flow.fn is body


def test_a_task_that_cannot_start_is_done_without_prefect() -> None:
    work = Work()
    assert _as_task(work, FakeFlow(before=True)) == 7
    assert work.calls == 1


def test_a_flow_that_cannot_start_is_refused_and_names_the_variable() -> None:
    work = Work()
    with pytest.raises(
        FlowmapsrError, match="(?s)no server.*PREFECT_API_URL|PREFECT_API_URL.*no server"
    ):
        _as_flow(work, FakeFlow(before=True))
    assert work.calls == 0


def test_prefects_own_server_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class SlowFlow(FakeFlow):
        starts = 0

        def __call__(self, *recipe: object) -> Any:
            type(self).starts += 1
            if self.starts == 1:
                raise RuntimeError("Timed out while attempting to connect to ephemeral ...")
            return self.fn(*recipe)

    monkeypatch.setattr(guard, "_keep_server_apart", lambda: None)
    ended = []  # instead of the server of these tests
    monkeypatch.setattr(guard, "_end_own_server", lambda: ended.append(1))
    work = Work()
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert _as_flow(work, SlowFlow()) == 7
        (said,) = caplog.messages
        assert "Timed out" in said and "a load of" in said and said.endswith("Once more")
        with pytest.raises(FlowmapsrError, match="did not start, twice .*no server.*PREFECT_API"):
            _as_flow(work, FakeFlow(before=True))
    assert work.calls == 1 and SlowFlow.starts == 2 and ended


@RUNNERS
@pytest.mark.parametrize("failure", [FlowmapsrError("bad photo"), KeyboardInterrupt()])
def test_a_failure_of_the_work_is_neither_masked_nor_tried_again(
    run: Callable[..., int], failure: BaseException
) -> None:
    work = Work(failure)
    with pytest.raises(type(failure)) as raised:
        run(work, FakeFlow())
    assert raised.value is failure
    assert work.calls == 1


@pytest.mark.parametrize("lost", [True, False])
def test_sigterm_in_a_flow_ends_the_command_as_sigterm(lost: bool) -> None:
    with pytest.raises(Terminated):
        _as_flow(Work(TerminationSignal(15)), FakeFlow(after=lost))


@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_shown_with_its_recipe_and_its_steps() -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client

    @flow(name="guarded", flow_run_name="run of {recipe}")
    def guarded_flow(recipe: int) -> int:
        raise AssertionError("the work is done instead of this")

    work = partial(task_step, "step", lambda: 7)
    assert guarded(guarded_flow, 3, work) == 7
    with pytest.raises(AssertionError):
        guarded_flow(3)  # the flow itself is unchanged
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.name == "run of 3"]
        tasks = client.read_task_runs()
    assert sorted(run.state_name or "" for run in runs) == ["Completed", "Failed"]
    (completed,) = (run for run in runs if run.state_name == "Completed")
    assert completed.parameters == {"recipe": 3}
    assert [one.flow_run_id for one in tasks if one.name.startswith("step")] == [completed.id]


def test_slugs_are_unique_and_of_safe_characters() -> None:
    assert artifact_slug("/a/set/") == artifact_slug("/a/set")
    assert artifact_slug("/a/set") != artifact_slug("/b/set")
    assert artifact_slug("s3://bucket/Über Set_2").startswith("ber-set-2-")
    assert len(artifact_slug("/" + "x" * 300)) < 60


def test_logs_that_cannot_be_sent_are_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    class LostClient:
        async def create_logs(self, logs: object) -> None:
            raise httpx.ConnectError("no server")

    _as_flow(Work(), FakeFlow(after=False))
    worker = APILogWorker.__new__(APILogWorker)
    worker._client = LostClient()
    asyncio.run(worker._handle_batch([{"message": "lost"}]))
    assert capfd.readouterr().err == "" and logging.raiseExceptions

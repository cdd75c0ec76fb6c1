"""The pool on real Ray actors that are really killed."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from pipelines.cluster import actor_pool
from pipelines.cluster.actor_pool import run_tasks
from pipelines.cluster.workers import WorkerPlan, WorkerRequest
from tests.support.eventually import eventually

pytestmark = pytest.mark.usefixtures("ray_cluster_address")


@dataclass(frozen=True)
class Task:
    path: str


@dataclass(frozen=True)
class Record:
    path: str
    process: int


TASKS = [Task(f"shards/{index}.tar") for index in range(8)]


@dataclass(frozen=True)
class Builder:
    """Writes a file for every task; the third one has an `accident` first."""

    folder: Path
    accident: str = "none"

    def __call__(self, task: Task) -> Record:
        time.sleep(0.02)
        if task == TASKS[2]:
            self._have_accident()
        (self.folder / Path(task.path).name).touch()
        return Record(task.path, os.getpid())

    def _have_accident(self) -> None:
        first_time = not (self.folder / "accident").exists()
        (self.folder / "accident").touch()
        if self.accident == "killed always" or (self.accident == "killed once" and first_time):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.accident == "refused":
            raise FlowmapsrError("the disk is full; make room")
        if self.accident == "bug":
            raise ZeroDivisionError("a bug")

    def made(self) -> set[str]:
        return {path.name for path in self.folder.glob("*.tar")}


def of_one_cpu(count: int) -> WorkerPlan:
    return WorkerPlan(count, WorkerRequest(cpus=1, memory=50_000_000))


def run(builder: Builder, *, workers: int = 2) -> list[Record]:
    noted: list[Record] = []
    records = run_tasks(
        builder,
        TASKS,
        workers=of_one_cpu(workers),
        on_done=lambda task, record: noted.append(record),
    )
    assert sorted(record.path for record in noted) == [task.path for task in TASKS]
    return records


def test_records_come_in_the_order_of_the_tasks(tmp_path: Path) -> None:
    records = run(Builder(tmp_path))
    assert [record.path for record in records] == [task.path for task in TASKS]
    assert os.getpid() not in {record.process for record in records}
    assert len({record.process for record in records}) <= 2


def test_more_workers_than_fit_the_cluster_run_as_slots_become_free(tmp_path: Path) -> None:
    assert len(run(Builder(tmp_path), workers=5)) == len(TASKS)


class SlowlyLoaded(Builder):
    def __setstate__(self, state: dict[str, object]) -> None:
        time.sleep(1.5)
        self.__dict__.update(state)


def test_a_cluster_that_is_slow_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(actor_pool, "PATIENCE_SECONDS", 0.2)
    assert len(run(SlowlyLoaded(tmp_path))) == len(TASKS)
    assert re.search(r"the Ray cluster has \d+ CPU.* free.*slow to start one, or", caplog.text)


def test_no_tasks_need_no_workers(tmp_path: Path) -> None:
    assert run_tasks(Builder(tmp_path), [], workers=of_one_cpu(2), on_done=print) == []


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    builder = Builder(tmp_path, accident="killed once")
    assert len(run(builder)) == len(TASKS)
    assert len(builder.made()) == len(TASKS)


def test_a_task_that_always_loses_its_worker_is_named(tmp_path: Path) -> None:
    builder = Builder(tmp_path, accident="killed always")
    with pytest.raises(FlowmapsrError, match=r"shards/2\.tar lost its worker 3 times"):
        run(builder)
    assert "2.tar" not in builder.made()


def test_the_others_are_done_where_a_task_may_be_given_up(tmp_path: Path) -> None:
    builder, noted = Builder(tmp_path, accident="killed always"), []

    def given_up(task: Task, why: str) -> Record:
        return Record(why, 0)

    records = run_tasks(
        builder,
        TASKS,
        workers=of_one_cpu(2),
        on_done=lambda task, record: noted.append(task),
        given_up=given_up,
    )
    assert "shards/2.tar lost its worker 3 times" in records[2].path and len(noted) == len(TASKS)
    assert builder.made() == {f"{index}.tar" for index in range(8)} - {"2.tar"}


def test_a_task_that_fails_stops_the_run_after_those_under_way(tmp_path: Path) -> None:
    builder = Builder(tmp_path, accident="refused")
    with pytest.raises(FlowmapsrError, match="^the disk is full; make room$"):
        run(builder, workers=1)
    assert builder.made() == {"0.tar", "1.tar"}


def test_a_bug_in_a_task_is_raised_as_itself(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(Builder(tmp_path, accident="bug"))


def test_a_node_with_other_code_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "code_version", lambda: "0.0.9 (code 00000000)")
    with pytest.raises(FlowmapsrError, match=r"this command has 0\.0\.9 .*, but node \S+ has"):
        run(Builder(tmp_path))
    assert not any(tmp_path.iterdir())


def test_an_error_of_on_done_stops_the_run(tmp_path: Path) -> None:
    def object_to_second(task: Task, record: Record) -> None:
        if task == TASKS[1]:
            raise FlowmapsrError("too many photos left out")

    builder = Builder(tmp_path)
    with pytest.raises(FlowmapsrError, match="left out"):
        run_tasks(builder, TASKS, workers=of_one_cpu(1), on_done=object_to_second)
    assert builder.made() == {"0.tar", "1.tar"}


class Telling(Builder):
    """Waits, after it has told something, until that was heard."""

    def __call__(self, task: Task, tell: Callable[[str], None] = print) -> Record:
        tell(f"half of {task.path}")
        eventually((self.folder / "heard").exists, seconds=30)
        return super().__call__(task)


def run_telling(builder: Telling) -> list[dict[str, str]]:
    """What was told of the third task each time."""
    told: list[dict[str, str]] = []

    def heard(of_tasks: Mapping[str, str]) -> None:
        told.append(dict(of_tasks))
        (builder.folder / "heard").touch()

    run_tasks(builder, TASKS[2:3], workers=of_one_cpu(1), on_done=lambda *_: None, on_told=heard)
    return told


def test_what_was_told_of_a_task_goes_with_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "TELL_SECONDS", 0.01)
    told = run_telling(Telling(tmp_path, accident="killed once"))
    once = {"shards/2.tar": "half of shards/2.tar"}
    assert told[:2] == [once, {}] and all(each == once for each in told[2:])


def test_a_task_that_tells_may_fail(tmp_path: Path) -> None:
    (tmp_path / "heard").touch()
    with pytest.raises(FlowmapsrError, match="^the disk is full; make room$"):
        run_telling(Telling(tmp_path, accident="refused"))

"""A worker that makes no progress: how the run ends, what it leaves, and how it resumes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.launch import start_workers, train
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import WARMUP, RunMaker
from training.monitoring.watchdog import EXIT_CODE, OTHERS_SECONDS, Watchdog
from training.run_dir.paths import StagePaths
from training.run_dir.stacks import StackHeader, stack_files, stall_reason
from training.run_dir.starts import read_starts

STAGE = {**WARMUP, "steps": 12, "checkpoint_every_steps": 4}


@pytest.mark.timeout(500)
def test_a_stalled_run_ends_with_every_workers_stack_and_resumes_when_started_again(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[STAGE])
    recipe = recipe.model_copy(update={"watchdog_seconds": 5.0})
    process = start_workers(recipe, tmp_path, module="tests.training.workers.stalling_run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    stage = StagePaths(Path(recipe.output), "warmup")
    first, second = sorted(stage.stacks.iterdir(), key=lambda path: path.stem[-1])
    assert first.name.endswith("-rank-0.txt") and second.name.endswith("-rank-1.txt")
    assert "in stuck" in second.read_text() and "in stuck" not in first.read_text()
    assert "step 9" in first.read_text() or "step 8" in first.read_text()
    assert "made no progress" in output or "no progress for" in output
    assert output.count("in stuck") >= 1  # in the log too

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    names = mlflow_names(recipe.output)
    for run_id, folder in ((names.parent, "stacks/warmup"), (names.stages["warmup"], "stacks")):
        run = client.get_run(run_id)
        assert run.info.status == "FAILED" and "no progress for" in run.data.tags["failure"]
        shown = {item.path for item in client.list_artifacts(run_id, folder)}
        assert shown == {f"{folder}/{path.name}" for path in (first, second)}

    train(recipe, tmp_path)
    starts = read_starts(stage)
    assert [(start.step, len(start.workers.hosts)) for start in starts] == [(0, 2), (8, 2)]
    assert starts[0].ended_before is None
    assert "no progress for" in str(starts[1].ended_before)

    child = client.get_run(names.stages["warmup"])
    stacks = {item.path for item in client.list_artifacts(child.info.run_id, "stacks")}
    assert stacks == {f"stacks/{path.name}" for path in (first, second)}
    assert child.info.status == "FINISHED" and "failure" not in child.data.tags
    assert child.data.tags["restarts"] == "1"
    assert child.data.metrics["perf/tflops"] > 0
    assert "perf/mfu" not in child.data.metrics  # a CPU has no peak to compare with
    assert child.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert child.data.tags["world_size"] == "2" and child.data.tags["hosts"]
    assert child.data.tags["mlflow.source.name"].startswith("run.py")
    parent = client.get_run(names.parent)
    assert "failure" not in parent.data.tags
    assert parent.info.status == "FINISHED" and parent.data.metrics["cost/restarts"] == 1
    history = client.get_metric_history(names.parent, "loss/fm")
    assert [point.step for point in history] == [10, 12]
    assert "**warmup** restarted 1 time" in parent.data.tags["mlflow.note.content"]
    stacks = {item.path for item in client.list_artifacts(names.parent, "stacks/warmup")}
    assert stacks == {f"stacks/warmup/{path.name}" for path in (first, second)}
    progress = json.loads(stage.progress.read_text())
    assert progress["worker_hours"] == pytest.approx(
        parent.data.metrics["cost/worker_hours"], abs=0.01
    )


def test_every_machine_is_sampled_under_its_own_name(run_recipe: RunMaker, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[STAGE])
    process = start_workers(recipe, tmp_path, module="tests.training.workers.two_machines")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    names = mlflow_names(recipe.output)
    child = client.get_run(names.stages["warmup"])
    system = {name for name in child.data.metrics if name.startswith("system/")}
    assert system and all(name.startswith("system/machine-") for name in system)
    for machine in ("machine-0", "machine-1"):
        history = client.get_metric_history(
            child.info.run_id, f"system/{machine}/cpu_utilization_percentage"
        )
        assert history and all(0 <= point.value <= 100 for point in history)
        assert all(0 < point.step <= STAGE["steps"] for point in history)


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a separate process, with the stage's folder as its argument."""
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120
    )


FROZEN = """
import ctypes, sys, time
from pathlib import Path
from training.monitoring import watchdog
watchdog.OTHERS_SECONDS = watchdog.BEFORE_END_SECONDS = 1.0
with watchdog.Watchdog(Path(sys.argv[1]), rank=0, world_size=1, seconds=1.0) as dog:
    dog.alive("nothing")
    time.sleep(1.0)  # the watchdog looks once
    ctypes.PyDLL(None).sleep(60)  # holds Python's lock, as stuck extension code does
"""


def test_a_process_that_never_releases_the_gil_is_killed_too(tmp_path: Path) -> None:
    start = time.monotonic()
    done = _run(FROZEN, tmp_path)
    assert done.returncode != 0 and time.monotonic() - start < 55
    (path,) = stack_files(tmp_path)
    assert path.name.endswith("-frozen-rank-0.txt") and "<string>" in path.read_text()


FROZEN_AMONG_TWO = """
import ctypes, os, sys, time
from pathlib import Path
from training.monitoring import watchdog
from training.run_dir.stacks import StackHeader, stack_files, stall_reason
watchdog.FROZEN_SECONDS = 2.0
if os.fork():
    with watchdog.Watchdog(Path(sys.argv[1]), rank=0, world_size=2, seconds=2.0) as dog:
        dog.alive("nothing")
        dog.before_end(lambda: print(*stack_files(Path(sys.argv[1])), flush=True))
        time.sleep(60)
with watchdog.Watchdog(Path(sys.argv[1]), rank=1, world_size=2, seconds=2.0) as dog:
    dog.alive("nothing")
    time.sleep(1.0)
    ctypes.PyDLL(None).sleep(60)
"""


def test_the_first_worker_waits_for_the_traces_of_a_frozen_one(tmp_path: Path) -> None:
    start = time.monotonic()
    done = _run(FROZEN_AMONG_TWO, tmp_path)
    assert done.returncode == EXIT_CODE
    frozen, first = sorted(done.stdout.split(), key=lambda name: "frozen" not in name)
    assert frozen.endswith("-frozen-rank-1.txt") and first.endswith("-rank-0.txt")
    assert time.monotonic() - start < OTHERS_SECONDS, "it waited although all traces were there"


STUCK_BEFORE_END = """
import sys, time
from pathlib import Path
from training.monitoring import watchdog
watchdog.BEFORE_END_SECONDS, watchdog.LONG_SECONDS = 1.0, 0.0
with watchdog.Watchdog(Path(sys.argv[1]), rank=0, world_size=1, seconds=0.5) as dog:
    dog.before_end(lambda: time.sleep(60))  # like an unreachable server
    dog.before_end(lambda: print("called", flush=True))
    dog.before_end(lambda: 1 / 0)
    time.sleep(60)
"""


def test_a_call_before_the_end_cannot_delay_it(tmp_path: Path) -> None:
    start = time.monotonic()
    done = _run(STUCK_BEFORE_END, tmp_path)
    assert done.returncode == EXIT_CODE and time.monotonic() - start < 30
    assert done.stdout == "called\n" and "division by zero" in done.stderr


UNREADABLE_FOR_A_WHILE = """
import sys, time
from pathlib import Path
from training.monitoring import watchdog
stacks = Path(sys.argv[1]) / "stacks"
with watchdog.Watchdog(stacks, rank=0, world_size=1, seconds=0.5) as dog:
    stacks.rename(stacks.with_name("away"))
    for _ in range(10):
        dog.alive("work")
        time.sleep(0.1)
    stacks.with_name("away").rename(stacks)
    print("continued", flush=True)
    time.sleep(60)
"""


def test_a_folder_that_is_unreadable_for_a_while_ends_no_worker(tmp_path: Path) -> None:
    done = _run(UNREADABLE_FOR_A_WHILE, tmp_path)
    assert done.stdout == "continued\n"
    assert done.returncode == EXIT_CODE, "it no longer watches"
    assert len(stack_files(tmp_path / "stacks")) == 1


def test_a_worker_that_makes_progress_is_not_killed(tmp_path: Path) -> None:
    """Traces of an earlier start do not end it either."""
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    (stacks / "20260101-000000-rank-1.txt").write_text("worker 1 of 2: no progress for 9 s")
    (stacks / ".rank-0").write_text("Timeout!")
    with Watchdog(stacks, rank=0, world_size=1, seconds=0.4) as watchdog:
        (stacks / ".rank-1").write_text("Timeout!")
        kept = stack_files(stacks)
        for _ in range(10):
            watchdog.alive("work")
            time.sleep(0.1)
        watchdog.alive("a checkpoint", next_is_long=True)
        time.sleep(1.0)
    assert len(kept) == 3 and sorted(stacks.iterdir()) == kept


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from training.monitoring import outside_watch, watchdog
watchdog.FROZEN_SECONDS = outside_watch.MARGIN_SECONDS = 0.5
with watchdog.Watchdog(Path(sys.argv[1]), rank=0, world_size=1, seconds=1.0) as dog:
    dog.alive("step 7")
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_process_that_is_stopped_is_killed_from_outside_and_the_reason_is_kept(
    tmp_path: Path,
) -> None:
    start = time.monotonic()
    done = _run(STOPPED, tmp_path)
    assert done.returncode == -signal.SIGKILL and time.monotonic() - start < 30
    reason = stall_reason(stack_files(tmp_path))
    assert re.fullmatch(
        r"worker 0 of 1: no sign of life for \d s after step 7: its process is stopped .*", reason
    )
    waited = StackHeader(rank=1, world_size=2, stalled=True, reason="no progress")
    (tmp_path / "20200101-000000-rank-1.txt").write_text(waited.model_dump_json())
    assert stall_reason(stack_files(tmp_path)) == reason, "the other one only waited for it"

"""Training workers: requests to the cluster, how they find each other, and their failures."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.exceptions import RayActorError

from datagen.errors import FlowmapsrError
from pipelines.cluster import train_launcher
from pipelines.cluster.stage_watch import RunWatch, StageWatch
from pipelines.cluster.train_hooks import KILLED, FailureLog, NetworkConfig
from pipelines.cluster.workers import Placement, WorkerRequest, place_workers
from pipelines.terminal.progress import Progress
from training.network import interface_of
from training.run_dir.lock import run_lock
from training.run_dir.paths import RunPaths, StagePaths, stage_paths
from training.run_dir.records import StageProgress, WorkerGroup
from training.run_dir.starts import read_failures, record_start
from training.settings.recipe import TrainingRecipe

CPU_NODE, GPU_NODE = {"CPU": 8.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 4.0}


def _recipe(**changes: Any) -> TrainingRecipe:
    stage = {"name": "warmup", "objective": {"kind": "flow_matching"}, "steps": 1}
    sizes = {"global_batch": 24, "micro_batch": 2}
    fields = {"manifest": "/m", "output": "/run", "stages": [{**stage, **sizes}], **changes}
    return TrainingRecipe.model_validate(fields)


def test_workers_take_a_gpu_each_where_there_are_some() -> None:
    placed = place_workers(_recipe(workers=4, cpus_per_worker=3), [CPU_NODE, GPU_NODE])
    assert placed == Placement(4, 4, WorkerRequest(cpus=3, gpus=1), "PACK")
    assert placed.each.resources == {"CPU": 3.0, "GPU": 1.0}
    on_cpu = place_workers(_recipe(workers=4, gpus_per_worker=0, placement="spread"), [GPU_NODE])
    assert (on_cpu.each.resources, on_cpu.strategy) == ({"CPU": 1.0}, "SPREAD")


def test_a_worker_trains_on_one_gpu_or_none() -> None:
    for gpus in (0, 1, None):
        assert _recipe(gpus_per_worker=gpus).gpus_per_worker == gpus
    for gpus in (0.5, 2):
        with pytest.raises(ValidationError, match="gpus_per_worker"):
            _recipe(gpus_per_worker=gpus)


def test_a_range_is_placed_if_its_minimum_fits() -> None:
    recipe = _recipe(workers={"min": 2, "max": 4}, cpus_per_worker=4)
    placed = place_workers(recipe, [CPU_NODE])
    assert (placed.least, placed.most) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"workers": 6},
            r"6 workers with 1 CPU, 1 GPU,.*fits 4.*2 nodes: 1 x .8 CPU.*1 x .16 CPU, 4 GPU",
        ),
        ({"workers": 6}, "or add nodes; gpus_per_worker=0 trains on the CPU"),
        (
            {"workers": 12, "cpus_per_worker": 3, "gpus_per_worker": 0},
            "12 workers with 3 CPU, but.*fits 7.*cpus_per_worker, or add nodes$",
        ),
        ({"cpus_per_worker": 17}, "1 worker with 17 CPU, 1 GPU.*fits 0"),
        ({"workers": {"min": 6, "max": 12}}, "6 workers.*fits 4"),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_with_what_it_has(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(FlowmapsrError, match=words):
        place_workers(_recipe(**changes), [CPU_NODE, GPU_NODE])


def test_waiting_workers_are_explained() -> None:
    placed = place_workers(_recipe(workers=2), [GPU_NODE])
    busy = placed.waiting({"CPU": 9.0, "GPU": 1.0}, [GPU_NODE])
    assert busy == "starting 2 workers with 1 CPU, 1 GPU; now GPU 1 of 4 free"
    assert placed.waiting(GPU_NODE, [GPU_NODE]) == "starting 2 workers with 1 CPU, 1 GPU"


def test_no_worker_of_a_range_may_be_without_samples() -> None:
    recipe = _recipe(workers={"min": 5, "max": 24})
    assert (recipe.least_workers, recipe.most_workers) == (5, 24)
    with pytest.raises(ValidationError, match="global_batch 24 is less than"):
        _recipe(workers={"min": 1, "max": 25})
    with pytest.raises(ValidationError, match="min 3 is larger than max 2"):
        _recipe(workers={"min": 3, "max": 2})


def test_the_number_of_workers_is_no_part_of_the_digest() -> None:
    assert _recipe(workers=2).digest() == _recipe(workers=3, placement="spread").digest()
    assert _recipe(seed=1).digest() != _recipe(seed=2).digest()


class _RayError(Exception):
    """As Ray wraps what a worker raised, or how it died."""

    def __init__(self, raised: Exception, *, name: str = "_base_exc") -> None:
        super().__init__(f"Traceback: {raised}")
        setattr(self, name, raised)


def _died(words: str) -> _RayError:
    return _RayError(RayActorError(None, words), name="health_check_failure")


def test_an_error_for_the_user_ends_the_run_and_any_other_is_only_recorded(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path, most=3)
    failures.after_exception(None, {0: _RayError(OSError("connection lost"))})
    with pytest.raises(FlowmapsrError, match="the shard is damaged"):
        errors = {1: _RayError(FlowmapsrError("the shard is damaged")), 0: OSError("lost")}
        failures.after_exception(None, errors)
    found = [(one.rank, one.number, one.again, one.died) for one in read_failures(tmp_path)]
    assert found == [(0, 1, True, False), (0, 2, False, False), (1, 2, False, False)]
    on_a_full_disk = FailureLog(tmp_path / "missing" / "run", most=3)
    with pytest.raises(FlowmapsrError, match="the shard is damaged"):
        on_a_full_disk.after_exception(None, errors)


def test_a_failure_is_told_in_our_words_with_the_worker_the_host_and_how_many_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = stage_paths(_recipe(output=str(tmp_path)))[0]
    stage.root.mkdir(parents=True)
    workers = WorkerGroup(hosts=("a", "b"), devices=("cpu",) * 2, on_gpus=False)
    watch = RunWatch(tmp_path, most_failures=2)
    failures = FailureLog(tmp_path, most=2)
    told = []
    for words in ("its node has died", "exit type: SYSTEM_ERROR, some common causes", "SIGTERM"):
        record_start(stage, workers, step=0)
        failures.after_exception(None, {1: _died(words)})
        told.append(watch.show_failure(stage))
    assert told == [True, True, False], "of the last one the command's error tells"
    again = ": starting again from the last checkpoint"
    assert caplog.messages == [
        f"warmup: worker 1 on b: its machine was lost; failure 1 of 2{again}",
        f"warmup: worker 1 on b: {KILLED}; failure 2 of 2{again}",
    ]
    assert "some common causes" in read_failures(tmp_path)[1].details
    log = RunPaths(tmp_path).worker_log(1)
    log.parent.mkdir()
    log.write_text("2026-11-28 15:11:14,455 INFO a: b\nFatal Python error: Aborted\n\nThread 1\n")
    FailureLog(tmp_path, most=0).after_exception(None, {1: _died("some common causes")})
    assert read_failures(tmp_path)[-1].error == f"its process crashed (Aborted; see {log})"


@pytest.mark.parametrize("begun", [False, True])
def test_only_workers_that_have_begun_are_waited_for_until_they_have_saved(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train_launcher, "LOADING_SECONDS", 0.1)
    monkeypatch.setattr(train_launcher, "SAVE_SECONDS", 0.5)
    recipe = _recipe(output=str(tmp_path))
    with run_lock(recipe) as lock:
        workers = train_launcher.TrainingWorkers(recipe, lock)
        if begun:
            (stage,) = stage_paths(recipe)
            stage.root.mkdir(parents=True)
            record_start(stage, WorkerGroup(hosts=("a",), devices=("cpu",), on_gpus=False), step=0)
        workers.stop()
    assert ("did not save within" in caplog.text) is begun


class _OneProcess:
    """A worker group of this process alone, until Ray calls what needs a real one."""

    def execute(self, work: Callable[[], None]) -> None:
        work()

    def execute_single(self, *_: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("backend", "visible"), [("gloo", ""), ("nccl", "0,1")])
def test_workers_without_gpus_see_none_before_ray_asks_torch(
    backend: str, visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config = NetworkConfig(backend=backend)
    with pytest.raises(NotImplementedError):
        config.backend_cls().on_start(_OneProcess(), config)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


LOGGING = """
import logging, sys
from pathlib import Path
from training.monitoring.worker_log import PROGRESS, keep_log
logging.getLogger("training.data").info("of a start before")
keep_log(Path(sys.argv[1]), int(sys.argv[2]))
logging.getLogger("training.data").info("loaded\\n 3 tensors")
PROGRESS.info("10 of 20 steps")
logging.getLogger("some_library").warning("deprecated")
logging.getLogger("training.data").warning("sample %s skipped", "a-01")
"""


def test_what_the_first_worker_logs_is_shown_where_the_command_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def start(rank: int) -> None:
        subprocess.run([sys.executable, "-c", LOGGING, str(tmp_path), str(rank)], check=True)

    start(0)
    watch = RunWatch(tmp_path, most_failures=3)
    for rank in (0, 1):
        start(rank)
    watch.show_log()
    watch.show_log()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "loaded"),
        ("INFO", " 3 tensors"),
        ("WARNING", "sample a-01 skipped"),
    ]
    kept = RunPaths(tmp_path).worker_log(1).read_text()
    assert "10 of 20 steps" in kept and "some_library: deprecated" in kept


def test_a_stage_without_steps_says_so_instead_of_its_last_speed(tmp_path: Path) -> None:
    shown: list[tuple[int, str]] = []
    folder = StagePaths(tmp_path, "warmup")
    folder.root.mkdir(parents=True)
    progress = StageProgress(
        stage="warmup", step=7, steps=10, images_per_second=64.0, headline="loss/fm",
        headline_value=0.5, updated=1e9, checkpoint_step=0, checkpoint_time=0.0, worker_hours=0.0,
    )  # fmt: skip
    now = 0.0
    watch = StageWatch(
        Progress(lambda done, _, note: shown.append((int(done), note)), done=0),
        folder,
        lambda: "starting",
        clock=lambda: now,
    )
    for now, doing in ((1.0, ""), (20.0, ""), (46.0, ""), (62.0, "validating")):  # noqa: B007
        folder.progress.write_text(progress.model_copy(update={"doing": doing}).model_dump_json())
        watch.update()
    watch.start_over()
    watch.update()
    assert [done for done, _ in shown] == [7] * 5
    assert "64.0 images/s" in shown[0][1] == shown[1][1]
    assert [note for _, note in shown[2:]] == [
        "no step for 45 s",
        "no step for 61 s (validating)",
        "starting",
    ]

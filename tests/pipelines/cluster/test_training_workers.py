"""Training workers: requests to the cluster, how they find each other, and their failures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from pipelines.cluster import train_launcher
from pipelines.cluster.stage_watch import WorkerWarnings, keep_warnings
from pipelines.cluster.train_hooks import FailureLog, NetworkConfig, interface_of
from pipelines.cluster.workers import Placement, WorkerRequest, place_workers
from training.run_dir.lock import run_lock
from training.run_dir.paths import stage_paths
from training.run_dir.records import WorkerGroup
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
    """As Ray wraps what a worker raised."""

    def __init__(self, raised: Exception) -> None:
        super().__init__(f"Traceback: {raised}")
        self._base_exc = raised


def test_an_error_for_the_user_ends_the_run_and_any_other_is_only_recorded(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path)
    failures.after_exception(None, {0: _RayError(OSError("connection lost"))})
    with pytest.raises(FlowmapsrError, match="the shard is damaged"):
        errors = {1: _RayError(FlowmapsrError("the shard is damaged")), 0: OSError("lost")}
        failures.after_exception(None, errors)
    assert [failure.rank for failure in read_failures(tmp_path)] == [0, 0, 1]
    on_a_full_disk = FailureLog(tmp_path / "missing")
    with pytest.raises(FlowmapsrError, match="the shard is damaged"):
        on_a_full_disk.after_exception(None, errors)


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
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "203.0.113.7")
    config = NetworkConfig(backend=backend)
    with pytest.raises(NotImplementedError):
        config.backend_cls().on_start(_OneProcess(), config)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


def test_warnings_of_the_first_worker_are_shown_where_the_command_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("training")
    handlers = list(logger.handlers)
    keep_warnings(tmp_path)
    (kept,) = [handler for handler in logger.handlers if handler not in handlers]
    try:
        logging.getLogger("training.data").warning("of a start before")
        shown = WorkerWarnings(tmp_path)
        logging.getLogger("training.data").warning("sample %s skipped", "a-01")
        caplog.clear()
        shown.show()
        shown.show()
    finally:
        for name in ("training", "datagen"):
            logging.getLogger(name).removeHandler(kept)
        kept.close()
    assert [record.getMessage() for record in caplog.records] == ["sample a-01 skipped"]

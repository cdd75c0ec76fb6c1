"""What Ray Train calls: set-up of torch.distributed on its workers, and a record of failures."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
from ray.train import UserCallback
from ray.train.torch import TorchConfig

from datagen.errors import FlowmapsrError
from training.monitoring.worker_log import crash_log, crash_of
from training.network import name_interface, serve_store
from training.run_dir.paths import RunPaths
from training.run_dir.starts import Failure, append_line, last_line

log = logging.getLogger(__name__)

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError)
ENDS = {
    "running low on memory": "Ray killed its process, as its machine was short of memory",
    "node has died": "its machine was lost",
    "SIGTERM": "its process got SIGTERM",
}
"""How a process ended, by what Ray says of it."""
KILLED = "its process was killed (kill -9, or by the system for lack of memory)"


def hide_gpus() -> None:
    """Hides the GPUs of the node from a Ray worker that has none; Ray leaves them visible."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def open_store() -> tuple[str, int]:
    """Opens the workers' store on the first of them; its address and port."""
    address = ray.util.get_node_ip_address()
    return address, serve_store(address).port


def join_workers(store: tuple[str, int], backend: str, seconds: float) -> None:
    """Joins this worker to the others, with the variables that `torchrun` sets."""
    context = ray.train.get_context()
    numbers = {
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "NODE_RANK": context.get_node_rank(),
        "MASTER_PORT": store[1],
    }
    os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR=store[0])
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    name_interface(ray.util.get_node_ip_address())
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if backend_config.backend == "gloo":
            # Before anything asks torch for GPUs, which keeps its first answer.
            worker_group.execute(hide_gpus)
        store = worker_group.execute_single(0, open_store)
        worker_group.execute(
            join_workers, store, backend_config.backend, float(backend_config.timeout_s)
        )


@dataclass
class NetworkConfig(TorchConfig):
    """Ray Train's set-up of torch.distributed, with a store that listens on one address only, and
    the interface of the node's address."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class FailureLog(UserCallback):
    """Appends a line to `failures.jsonl`, which the next start reads, for every failed worker.

    Raises:
        FlowmapsrError: an error meant for the user, which a restart would only repeat. Ray restarts
            a group whose workers failed, but not one whose callback did.
    """

    def __init__(self, run: Path, *, most: int) -> None:
        """
        Args:
            most: how often Ray starts the workers again.
        """
        self.run, self.most, self.number = run, most, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.number += 1
        # Ray gives no other way to what was raised, or to how a process ended.
        errors = {
            rank: getattr(error, "health_check_failure", getattr(error, "_base_exc", error))
            for rank, error in sorted(worker_exceptions.items())
        }
        final = [error for error in errors.values() if isinstance(error, FlowmapsrError)]
        for rank, error in errors.items():
            failure = Failure(
                time=time.time(),
                rank=rank,
                died=isinstance(error, DEATHS),
                error=self._how_it_died(rank, error)
                if isinstance(error, DEATHS)
                else last_line(error),
                number=self.number,
                again=not final and self.number <= self.most,
                details=str(worker_exceptions[rank]),
            )
            path = RunPaths(self.run).failures
            try:
                append_line(path, failure)
            except OSError as problem:  # must not keep Ray from restarting the workers
                log.warning("%s cannot be written (%s): %s", path, problem, failure.error)
        if final:
            raise final[0]

    def _how_it_died(self, rank: int, error: Exception) -> str:
        """In words; Ray's own are a paragraph of guesses."""
        crash = crash_of(self.run, rank)
        if crash is not None:
            return f"its process crashed ({crash}; see {crash_log(self.run, rank)})"
        return next((words for said, words in ENDS.items() if said in str(error)), KILLED)

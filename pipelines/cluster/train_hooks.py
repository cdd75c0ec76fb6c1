"""What Ray Train calls: set-up of torch.distributed on its workers, and a record of failures."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
from ray.train import UserCallback
from ray.train.torch import TorchConfig

from datagen.errors import FlowmapsrError
from training.monitoring.worker_log import crash_of
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


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface with the address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


def name_interface() -> None:
    """Names the interface of the node's address to gloo and NCCL, unless the user has named one.

    gloo would take that of the host name, which on many machines is the loopback.
    """
    name = interface_of(ray.util.get_node_ip_address())
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name is not None:
            os.environ.setdefault(variable, name)


def hide_gpus() -> None:
    """Hides the GPUs of the node from a Ray worker that has none; Ray leaves them visible."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class _PreparedBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(name_interface)
        if backend_config.backend == "gloo":
            # Ray's set-up, next, asks torch for GPUs, and torch keeps its first answer.
            worker_group.execute(hide_gpus)
        super().on_start(worker_group, backend_config)


@dataclass
class NetworkConfig(TorchConfig):
    """Ray Train's set-up of torch.distributed, with the interface named first."""

    @property
    def backend_cls(self) -> Any:
        return _PreparedBackend


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
            return f"its process crashed ({crash}; see {RunPaths(self.run).worker_log(rank)})"
        return next((words for said, words in ENDS.items() if said in str(error)), KILLED)

"""The machines and devices of a stage's workers, gathered once at its start."""

from __future__ import annotations

import os
import time
from platform import node as host_name
from typing import TypeVar

import torch
import torch.distributed as dist

from datagen.errors import FlowmapsrError
from training.machines import code_version, require_same_code, warn_of_clocks
from training.run_dir.records import WorkerGroup
from training.tracking.provenance import processor_name

T = TypeVar("T")


def launched_as() -> tuple[int, int]:
    """Rank and number of the launcher's workers."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def gather_workers(device: torch.device) -> WorkerGroup:
    """Machines and devices of all workers, in order of rank; every worker must call it.

    Warns of clocks that differ.

    Raises:
        FlowmapsrError: a machine has another version of flowmapsr; names both.
    """
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor_name()
    hosts, devices, versions = zip(*_gathered((host_name(), name, code_version())), strict=True)
    clocks = _gathered(time.time())  # all have met just now
    if dist.get_rank() == 0:
        ahead = [clock - clocks[0] for clock in clocks]
        warn_of_clocks(dict(zip(hosts, ahead, strict=True)))
    require_same_code(dict(zip(hosts, versions, strict=True)), here=hosts[0])
    return WorkerGroup(hosts=hosts, devices=devices, on_gpus=on_gpu)


def _gathered(mine: T) -> list[T]:
    """What each worker has given, in order of rank."""
    all_of_them = [mine] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    return all_of_them


def worker_device() -> torch.device:
    """The GPU of this worker, which becomes torch's current one; the CPU where none is visible.

    Raises:
        FlowmapsrError: the machine has fewer GPUs than workers.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise FlowmapsrError(
            f"a worker trains on one GPU, and this machine has {count} for at least {index + 1} "
            "workers (LOCAL_RANK): start fewer on each machine, or set CUDA_VISIBLE_DEVICES= "
            "(empty) to train on the CPU"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device

"""How busy the hosts of a training are, sampled with each report, under MLflow's names.

MLflow's own monitor gives up when its server is down; these samples go through the journal.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from training.run_dir.records import WorkerGroup

log = logging.getLogger(__name__)

MEGABYTE = 1e6

Metrics = dict[str, float]


class SystemSampler:
    """Loads of CPU, memory, disk, network and GPUs; network traffic is counted from its start."""

    def __init__(self, folder: Path, *, node: str | None = None) -> None:
        """
        Args:
            folder: on the disk whose usage is reported.
            node: name of this host among several.
        """
        self._prefix = "system/" if node is None else f"system/{node}/"
        self.folder = folder
        self._gpus = _nvml_handles()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def sample(self) -> Metrics:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self.folder))
        network = psutil.net_io_counters()
        received = network.bytes_recv - self._network.bytes_recv
        sent = network.bytes_sent - self._network.bytes_sent
        metrics = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
            "network_receive_megabytes": received / MEGABYTE,
            "network_transmit_megabytes": sent / MEGABYTE,
        }
        for index, gpu in enumerate(self._gpus):
            metrics |= {f"gpu_{index}_{name}": value for name, value in _gpu_load(*gpu).items()}
        return {f"{self._prefix}{name}": value for name, value in metrics.items()}


def _gpu_load(nvml: Any, handle: Any) -> Metrics:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "memory_usage_megabytes": memory.used / MEGABYTE,
        "memory_usage_percentage": 100 * memory.used / memory.total,
        "utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "power_usage_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }


def _nvml_handles() -> list[tuple[Any, Any]]:
    """NVIDIA's library (nvidia-ml-py) and its handle of each GPU, where both exist."""
    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return [(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    except pynvml.NVMLError:
        return []


class HostMetrics:
    """Samples of all hosts; the first worker of each host samples it."""

    def __init__(self, folder: Path, workers: WorkerGroup, *, rank: int) -> None:
        host = workers.hosts[rank]
        self._world_size = len(workers.hosts)
        self._several = len(workers.machines) > 1
        self._sampler: SystemSampler | None = None
        if workers.hosts.index(host) == rank:
            self._sampler = SystemSampler(folder, node=host if self._several else None)

    def gather(self) -> Metrics:
        """The samples of all hosts. Every worker must call it at the same step."""
        sample = self._sample()
        if not self._several:
            return sample
        gathered: list[Metrics] = [{} for _ in range(self._world_size)]
        dist.all_gather_object(gathered, sample)
        return {name: value for part in gathered for name, value in part.items()}

    def _sample(self) -> Metrics:
        if self._sampler is None:
            return {}
        try:
            return self._sampler.sample()
        # Whatever a driver or a lost disk raises must not stop training.
        except Exception as error:
            log.warning("system metrics of this host are no longer sampled: %s", error)
            self._sampler = None
            return {}

"""How busy the hosts of a training are, sampled with each report, under MLflow's names.

MLflow's own monitor gives up when its server is down; these samples go through the journal.
"""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from training.run_dir.records import WorkerGroup

log = logging.getLogger(__name__)

MEGABYTE = 1e6

Metrics = dict[str, float]


class HostMetrics:
    """Loads of CPU, memory, disk, network and GPUs of all hosts, each sampled by its first worker.

    Network traffic is counted from the start.
    """

    def __init__(self, folder: Path, workers: WorkerGroup, *, rank: int) -> None:
        """
        Args:
            folder: on the disk whose usage is reported.
        """
        host = workers.hosts[rank]
        self.folder = folder
        self._world_size = len(workers.hosts)
        self._several = len(workers.machines) > 1
        self._prefix = f"system/{host}/" if self._several else "system/"
        self._is_first = workers.hosts.index(host) == rank
        self._samples_gpus = True
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def gather(self) -> Metrics:
        """The samples of all hosts. Every worker must call it at the same step."""
        sample: Metrics = {}
        if self._is_first:
            try:
                sample = {f"{self._prefix}{name}": value for name, value in self._sample().items()}
            # Whatever a driver or a lost disk raises must not stop training.
            except Exception as error:
                log.warning("system metrics of this host are no longer sampled: %s", error)
                self._is_first = False
        if not self._several:
            return sample
        gathered: list[Metrics] = [{} for _ in range(self._world_size)]
        dist.all_gather_object(gathered, sample)
        return {name: value for part in gathered for name, value in part.items()}

    def _sample(self) -> Metrics:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self.folder))
        network = psutil.net_io_counters()
        received = network.bytes_recv - self._network.bytes_recv
        sent = network.bytes_sent - self._network.bytes_sent
        host = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
            "network_receive_megabytes": received / MEGABYTE,
            "network_transmit_megabytes": sent / MEGABYTE,
        }
        return host | self._gpu_loads()

    def _gpu_loads(self) -> Metrics:
        if not self._samples_gpus:
            return {}
        try:
            loads = {gpu: _gpu_load(gpu) for gpu in range(torch.cuda.device_count())}
        # Whatever the driver or its Python package raises: only these metrics are missing then.
        except Exception as error:
            log.warning("GPU metrics need NVIDIA's driver library and nvidia-ml-py: %s", error)
            self._samples_gpus = False
            return {}
        return {f"gpu_{gpu}_{name}": load[name] for gpu, load in loads.items() for name in load}


def _gpu_load(gpu: int) -> Metrics:
    """Read by torch from NVIDIA's library through nvidia-ml-py, which is installed apart."""
    used = torch.cuda.device_memory_used(gpu)
    return {
        "memory_usage_megabytes": used / MEGABYTE,
        "memory_usage_percentage": 100 * used / torch.cuda.get_device_properties(gpu).total_memory,
        "utilization_percentage": torch.cuda.utilization(gpu),
        "power_usage_watts": torch.cuda.power_draw(gpu) / 1000,
    }

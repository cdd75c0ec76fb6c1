"""How busy a machine is, sampled beside training, under MLflow's own names.

MLflow's monitor gives up when its server is gone; these samples go through the journal. Knows no
training.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
MEGABYTE = 1e6

Metrics = dict[str, float]


class SystemSampler:
    """Loads of CPU, memory, disk, network and GPUs; network traffic is counted from its start."""

    def __init__(self, folder: Path, *, node: str | None = None) -> None:
        """
        Args:
            folder: on the disk whose fill is told.
            node: name of this machine among several.
        """
        self._prefix = "system/" if node is None else f"system/{node}/"
        self.folder = folder
        self._gpus = _nvml_handles()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # has nothing to compare with yet

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
    """NVIDIA's library (nvidia-ml-py) and its handle of each GPU, where both are there."""
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


@contextmanager
def sampled_system(
    write: Callable[[Metrics], None],
    folder: Path,
    *,
    node: str | None = None,
    seconds: float = INTERVAL_SECONDS,
) -> Iterator[None]:
    """Hands a sample of this machine to `write` every few seconds while the block runs, and one
    when it ends."""
    sampler, closing = SystemSampler(folder, node=node), threading.Event()

    def work() -> None:
        psutil.cpu_percent()  # psutil compares with the call before of the same thread
        while not closing.wait(seconds):
            write(sampler.sample())
        write(sampler.sample())

    thread = threading.Thread(target=_at_its_edge, args=(work,), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()


def _at_its_edge(work: Callable[[], None]) -> None:
    """Whatever a driver or a vanished disk raises must not reach training."""
    try:
        work()
    except Exception as error:
        log.warning("the machine is not sampled any more: %s", error)

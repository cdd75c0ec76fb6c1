"""Sets up torch.distributed on Ray workers: the network interface of their node's address, and no
GPU where none was asked for.

By default gloo takes the interface of the host name, which on many machines is the loopback.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """Name of this machine's interface with the address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


def name_interface() -> None:
    """Sets gloo's and NCCL's variables on this Ray worker, unless the user has set them."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
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

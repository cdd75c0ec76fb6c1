"""What the workers of a group see: each other, by the interface that carries their node's address,
and GPUs only where they have asked for some.

Left alone, gloo takes the interface of the host's name, which on many machines is the loopback.
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
    """Name of the interface that has the address; None when none of this machine's has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


def name_interface() -> None:
    """Sets gloo's and NCCL's variables on this Ray worker, where the user has not."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)


def hide_gpus() -> None:
    """Keeps a Ray worker that has no GPU off those of its node, which Ray leaves visible."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class _PreparedBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(name_interface)
        if backend_config.backend == "gloo":
            # Ray's own set-up, next, asks torch for GPUs, and the first answer stays.
            worker_group.execute(hide_gpus)
        super().on_start(worker_group, backend_config)


@dataclass
class NetworkConfig(TorchConfig):
    """Ray Train's set-up of torch.distributed, after the interface is named; with the backend
    `gloo` on the CPU."""

    @property
    def backend_cls(self) -> Any:
        return _PreparedBackend

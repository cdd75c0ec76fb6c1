"""On which addresses the workers of a training listen for each other: no more than they need."""

from __future__ import annotations

import os
import socket

import psutil
import torch.distributed as dist

LOOPBACK = "127.0.0.1"

_served: list[dist.TCPStore] = []
"""A store to which nothing refers would close."""


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface with the address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


def name_interface(address: str) -> None:
    """Names the interface of an address of this machine to gloo and NCCL, unless the user has.

    gloo would take that of the host name, which on many machines is the loopback.
    """
    name = interface_of(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name is not None:
            os.environ.setdefault(variable, name)


def serve_store(address: str, port: int = 0) -> dist.TCPStore:
    """The store through which workers find each other, for the life of this process.

    It listens on one address of this machine, where torch's own would on all. torch takes it for
    its own when it is asked for one at the same port.
    """
    here = address if interface_of(address) else ""  # a container may not know its node's address
    server = socket.create_server((here, port))
    port = server.getsockname()[1]
    store = dist.TCPStore(
        address,
        port,
        is_master=True,
        multi_tenant=True,
        wait_for_workers=False,
        master_listen_fd=server.detach(),
    )
    _served.append(store)
    return store


def stay_on_this_machine() -> None:
    """Before workers of a launcher meet: where it says that all are on this machine, nothing of
    them listens on others' networks. `torchrun` has a store of its own already, which does."""
    if os.environ.get("MASTER_ADDR") not in ("127.0.0.1", "localhost"):
        return
    name_interface(LOOPBACK)
    if os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = serve_store(LOOPBACK, int(os.environ["MASTER_PORT"]))
        os.environ["MASTER_PORT"] = str(store.port)

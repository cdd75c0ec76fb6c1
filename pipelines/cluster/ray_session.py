"""Connects to Ray: the cluster that `RAY_ADDRESS` names, else one that ends with this command.

Knows nothing of what runs on it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from datagen.errors import FlowmapsrError
from pipelines.environment import QUIET, prepare_environment

OBJECT_STORE_BYTES = 300_000_000
"""Enough for paths and records, which is all that travels through Ray; pixels do not."""


@contextmanager
def ray_cluster(*, cpus: int) -> Iterator[None]:
    """Ray for the duration of the block; what this starts, it also stops.

    Args:
        cpus: worker slots of a cluster of our own; one by address has what it has.
    """
    if ray.is_initialized():
        yield
        return
    prepare_environment()
    address = os.environ.get("RAY_ADDRESS")
    with _sigterm_kept():
        if address:
            _connect(address)
        else:
            with _deaf_children():
                _start_local(cpus)
    try:
        yield
    finally:
        ray.shutdown()


def end_connection() -> None:
    """Ends what this process runs on the cluster, at once."""
    ray.shutdown()


def cluster_nodes() -> list[Mapping[str, float]]:
    """What each living node of the connected cluster has, as Ray names it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_resources() -> Mapping[str, float]:
    """What of the connected cluster nobody uses, as Ray names it."""
    free: Mapping[str, float] = ray.available_resources()
    return free


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Puts back the handler of SIGTERM: Ray's own would abort the process without any clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started in the block do not hear SIGTERM, as Ray's never hear Ctrl-C.

    `timeout`, systemd and Slurm send it to all processes of a command. Ray's would end before this
    one has saved anything, and this one with them. `ray.shutdown` ends them all the same.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _connect(address: str) -> None:
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": QUIET},
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise FlowmapsrError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, correct the "
            f"variable, or unset it to run on this machine alone"
        ) from error


def _start_local(cpus: int) -> None:
    # "local" and not the default, which may attach to a stale cluster left on this machine.
    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,  # its warnings are about clusters of several machines
        object_store_memory=OBJECT_STORE_BYTES,
    )

"""Connects to Ray: the cluster that `RAY_ADDRESS` names, else one that ends with this command."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from datagen.errors import FlowmapsrError
from datagen.io.end_signals import END_SIGNALS
from pipelines.environment import QUIET, prepare_environment
from pipelines.terminal.children import end_children_with_this_process
from pipelines.terminal.doing import doing

OBJECT_STORE_BYTES = 300_000_000
"""Enough for paths and records; pixels do not pass through Ray."""


@contextmanager
def ray_cluster(*, cpus: int) -> Iterator[None]:
    """Ray for the length of the block: an existing cluster, or one of `cpus` that ends with it."""
    if ray.is_initialized():
        yield
        return
    prepare_environment()
    doing("starting Ray")
    address = os.environ.get("RAY_ADDRESS")
    with restore_sigterm_handler():
        if address:
            _connect(address)
        else:
            end_children_with_this_process()
            with block_signals_in_children():
                _start_local(cpus)
    # Ray's news of a dead process, a paragraph each; what has failed is told in our words.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray.shutdown()


def cluster_nodes() -> list[Mapping[str, float]]:
    """Resources of each living node of the connected cluster, as Ray names them."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def restore_sigterm_handler() -> Iterator[None]:
    """Restores the handler of SIGTERM: Ray's own would abort the process without any clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Blocks signals that ask to end in processes started here, as Ray does with SIGINT.

    `timeout`, systemd, Slurm and a closed terminal send them to all processes of a command. Ray's
    would end before training has saved anything. `ray.shutdown` ends them all the same.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
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
        logging_level=logging.ERROR,  # its warnings concern clusters of several machines
        object_store_memory=OBJECT_STORE_BYTES,
    )

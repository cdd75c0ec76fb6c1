"""Connects to Ray: the cluster that `RAY_ADDRESS` names, else one that ends with this command."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants

from datagen.errors import FlowmapsrError, first_line
from datagen.io.end_signals import END_SIGNALS
from pipelines.cluster.node_check import check_nodes
from pipelines.environment import QUIET, how_busy, prepare_environment, temporary_folder
from pipelines.terminal.children import end_children_with_this_process
from pipelines.terminal.doing import doing

log = logging.getLogger(__name__)

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
        if address:
            doing("asking the nodes for their version")
            check_nodes()
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
    # Without the extra `ray[client]` an address that begins with ray:// is an ImportError.
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, ImportError) as error:
        if str(error).startswith("Version mismatch"):
            said = " ".join(str(error).split())
            raise FlowmapsrError(
                f"RAY_ADDRESS={address}: {said}; install the same Ray and Python on all machines"
            ) from error
        raise FlowmapsrError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, correct the "
            f"variable, or unset it to run on this machine alone"
        ) from error


def _start_local(cpus: int) -> None:
    stay_on_this_machine()
    keep_token_private()
    try:
        _init_local(cpus)
    # Ray raises several kinds when a start takes too long, `Exception` itself among them.
    except Exception as error:
        log.warning("Ray did not start (%s); %s. Once more", first_line(error), how_busy())
        doing("starting Ray once more")
        try:
            _init_local(cpus)
        except Exception as again:
            raise FlowmapsrError(
                f"Ray did not start, twice ({first_line(again)}); {how_busy()}. If that is too "
                f"much, wait for other work to end and run the same command again; Ray's logs are "
                f"in {Path(temporary_folder(), 'ray')}"
            ) from again


def _init_local(cpus: int) -> None:
    before = set(psutil.Process().children(recursive=True))
    try:
        # "local" and not the default, which may attach to a stale cluster left on this machine.
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,  # its warnings concern clusters of several machines
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception:
        ray.shutdown()
        for process in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):  # what Ray leaves of a start that failed
                process.kill()
        raise


def stay_on_this_machine() -> None:
    """Lets Ray listen on the loopback alone, where it would on all interfaces: by its switch for
    laptops, which its processes read from the environment, and this one has read already."""
    switch = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.setdefault(switch, "0") not in ("0", "false")


def keep_token_private() -> None:
    """Makes the token of Ray's processes, if there is none, for this user's eyes only; Ray would
    make the same file for all users to read."""
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or any(map(os.environ.get, names)):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # of mode 0600
        file.write(secrets.token_hex(32))
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)
    path.chmod(0o600)

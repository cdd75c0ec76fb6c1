"""Starts modules in worker processes, without Ray and Prefect.

`start_workers` forks them (see `fork_server.py`) and is what most tests need; `start_torchrun` runs
the real launchers, which costs seconds more.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.processes import Process
from training.settings.recipe import TrainingRecipe

ROOT = Path(__file__).parents[2]


class ForkedLauncher:
    """A launcher and its workers, forked by the fork server."""

    def __init__(self, module: str, words: Sequence[str], *, workers: int, env: dict[str, str]):
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        request = {
            "module": module,
            "words": list(words),
            "workers": workers,
            "environment": env,
            "folder": os.getcwd(),
        }
        socket.send_fds(_server(), [json.dumps(request).encode()], [output_end, status_end])
        os.close(output_end)
        os.close(status_end)
        self._output = io.BytesIO()
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._reader.start()
        self._waiter.start()

    def _read(self, output: int) -> None:
        with os.fdopen(output, "rb", buffering=0) as stream:
            while chunk := stream.read(1 << 16):
                self._output.write(chunk)

    def _wait(self) -> None:
        with self._status:
            self.returncode = int(self._status.readline())

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The launcher's exit code, once it has ended; its workers may still run."""
        self._join(self._waiter, timeout)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, *, timeout: float | None = None) -> tuple[str, None]:
        """Everything printed, once the launcher and all its workers have ended."""
        self._join(self._waiter, timeout)
        self._join(self._reader, timeout)
        return self._output.getvalue().decode(errors="replace"), None

    def _join(self, thread: threading.Thread, timeout: float | None) -> None:
        thread.join(timeout)
        if thread.is_alive():
            raise subprocess.TimeoutExpired(f"forked launcher {self.pid}", timeout or 0.0)

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> socket.socket:
    """A socket to this process's fork server, started at its first use."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())]
    # One thread before torch is imported: sums in another order differ in their last bits, and
    # a fork while another thread runs would copy that thread's locks, never to be released.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=env)
    theirs.close()
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def torchrun(workers: int) -> list[str]:
    """The launcher's module and arguments, up to the name of the launched module."""
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={workers}", "-m"]


def deepspeed(workers: int) -> list[str]:
    """The same for DeepSpeed's launcher."""
    port = f"--master_port={free_port()}"
    return ["deepspeed.launcher.runner", f"--num_gpus={workers}", port, "--module"]


def start_workers(
    recipe: TrainingRecipe,
    folder: Path,
    *,
    module: str = "training.run",
    words: Sequence[str] = (),
) -> ForkedLauncher:
    """Starts a recipe's workers by forking them."""
    path = _written(recipe, folder)
    env = _environment(folder)
    return ForkedLauncher(module, [path, *words], workers=recipe.most_workers, env=env)


def start_torchrun(
    recipe: TrainingRecipe,
    folder: Path,
    *,
    launcher: Callable[[int], list[str]] = torchrun,
    module: str = "training.run",
    words: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Starts a recipe under a real launcher, torchrun unless another is given."""
    path = _written(recipe, folder)
    return subprocess.Popen(
        [sys.executable, "-m", *launcher(recipe.most_workers), module, path, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(folder),
    )


def train(recipe: TrainingRecipe, folder: Path) -> None:
    """Trains a recipe to its end."""
    finish(start_workers(recipe, folder))


def finish(process: Process, *, seconds: float | None = 280) -> None:
    """Waits for a launcher that must succeed; None waits as long as it takes."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output


def found_by(module: str, *words: str, workers: int, results: Path) -> dict[str, Any]:
    """The JSON that `module` wrote to its last argument, `results`, when workers ran it."""
    env = dict(os.environ)
    finish(ForkedLauncher(module, [*words, str(results)], workers=workers, env=env))
    found: dict[str, Any] = json.loads(results.read_text())
    return found


def _written(recipe: TrainingRecipe, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json())
    return str(path)


def _environment(folder: Path) -> dict[str, str]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri}

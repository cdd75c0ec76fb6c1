"""Starts training workers in milliseconds by forking a process that has imported everything.

Importing torch, DeepSpeed, MLflow and diffusers takes a worker several seconds of CPU, and the
tests start some seventy workers. `python -m tests.support.fork_server FD` imports them once and
then forks a launcher for every request on the socket FD. A launcher forks the workers with the
environment that `torchrun --standalone` would give them and supervises them as torchrun does: a
signal is passed on, and the first failure ends the others.

What torchrun and DeepSpeed's launcher do themselves is tested with the real ones.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from training.engine.deepspeed_patches import import_deepspeed

PRELOADED = ("training.stage", "training.systems", "mlflow", "peft.tuners.lora", "torch._dynamo")
HARMLESS_THREADS = {"jemalloc_bg_thd"}
"""pyarrow's; jemalloc prepares itself for a fork."""
GRACE_SECONDS = 30.0
"""Between SIGTERM and SIGKILL, as torchrun's."""


def serve(requests: socket.socket) -> None:
    """Answers requests until the other end is closed."""
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):  # MLflow, where nothing is tracked
            import_module(name)
    import_deepspeed()
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    own = Path("/proc/self/comm").read_text().strip()
    assert threads - HARMLESS_THREADS == {own}, f"an import has started a thread: {threads}"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are never waited for
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        output, status = descriptors
        if os.fork() == 0:
            requests.close()
            _detached(partial(_supervise, json.loads(message), output, status))
        os.close(output)
        os.close(status)


def _supervise(request: dict[str, Any], output: int, status: int) -> None:
    """Reports the launcher's process ID and, at its end, its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    launcher = os.fork()
    if launcher == 0:
        os.close(status)
        _detached(partial(_launch, request, output))
    os.close(output)
    os.write(status, f"{launcher}\n".encode())
    _, ended = os.waitpid(launcher, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())


def _launch(request: dict[str, Any], output: int) -> None:
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"], **_rendezvous(request["workers"]))
    workers: dict[int, int] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _send(workers, signal.Signals(number)))
    for rank in range(request["workers"]):
        worker = os.fork()
        if worker == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
            _detached(partial(_work, request["module"], request["words"]))
        workers[worker] = rank
    sys.exit(_wait_for(workers))


def _rendezvous(workers: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "GROUP_WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }


def _work(module: str, words: list[str]) -> None:
    sys.argv = [module, *words]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _wait_for(workers: dict[int, int]) -> int:
    """Exit code 0 if all workers succeed, else 1, after the others were stopped."""
    failed, deadline = False, float("inf")
    while workers:
        ended, state = os.waitpid(-1, os.WNOHANG)
        if ended:
            rank, code = workers.pop(ended), os.waitstatus_to_exitcode(state)
            if code and not failed:
                print(f"worker {rank} ended with exit code {code}", flush=True)
                failed, deadline = True, time.monotonic() + GRACE_SECONDS
                _send(workers, signal.SIGTERM)
        elif time.monotonic() > deadline:
            _send(workers, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.01)
    return int(failed)


def _send(workers: dict[int, int], number: signal.Signals) -> None:
    for worker in list(workers):
        os.kill(worker, number)


def _detached(work: Callable[[], None]) -> None:
    """Ends this forked process with the work's exit code; never returns into the server's code."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

"""A Ray cluster started by the command, and signals to all processes of the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from datagen.io.end_signals import END_SIGNALS

COMMAND = """
import threading, time
import ray
from datagen.io.end_signals import on_end_signal
from pipelines.cluster.ray_session import ray_cluster

received = threading.Event()
on_end_signal(received.set)

@ray.remote(num_cpus=1)
class Worker:
    def save(self):
        return "saved"

with ray_cluster(cpus=1):
    worker = Worker.remote()
    ray.get(worker.save.remote())
    print("running", flush=True)
    assert received.wait(60)
    time.sleep(2.0)
    print(ray.get(worker.save.remote(), timeout=60), len(ray.nodes()), flush=True)
"""


@pytest.mark.timeout(200)
def test_signals_to_all_processes_of_a_command_let_the_workers_save(tmp_path: Path) -> None:
    """As `timeout`, systemd, Slurm and a terminal that is gone send them."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    started = psutil.Process(process.pid).children(recursive=True)
    for number in END_SIGNALS:
        os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=120)
    assert said == "saved 1\n" and process.returncode == 0
    assert not psutil.wait_procs(started, timeout=20)[1], "they end with the command"

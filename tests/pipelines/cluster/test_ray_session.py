"""A Ray cluster started by the command, and signals to all processes of the command."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from datagen.errors import FlowmapsrError
from datagen.io.end_signals import END_SIGNALS
from pipelines.cluster import ray_session

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


SLOW = Exception("The current node timed out during startup. This could happen because ...")
"""What Ray 2.60 raises after half a minute."""


@pytest.mark.parametrize("failures", [1, 2])
def test_a_start_that_takes_too_long_is_told_and_tried_once_more(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [SLOW] * failures

    def init(**_: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(ray_session.ray, "init", init)
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session.ray, "shutdown", lambda: None)
    refusal = pytest.raises(FlowmapsrError, match="did not start, twice .*timed out .*a load of")
    with refusal if failures == 2 else nullcontext(), ray_session.ray_cluster(cpus=1):
        assert failures == 1
    (said,) = caplog.messages
    assert "timed out during startup" in said and said.endswith("Once more")


def test_the_token_of_ray_is_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    file = tmp_path / ".ray" / "auth_token"
    ray_session.keep_token_private()
    token = file.read_text()
    assert len(token) == 64 and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)  # one that Ray made
    ray_session.keep_token_private()
    assert file.read_text() == token and file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["auth_token"]

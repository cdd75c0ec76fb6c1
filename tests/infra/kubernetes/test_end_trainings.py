"""What a pod does before it ends, with processes like those of a training and its command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.kubernetes.end_trainings import end_trainings
from training.run_dir.paths import RunPaths

WORKER = """
import sys, time
from pathlib import Path
from training.monitoring.worker_log import keep_log
from training.run_dir.stop_signal import StopSignal
run = Path(sys.argv[1])
keep_log(run, 0)
print("trains", flush=True)
while not StopSignal(run)():
    time.sleep(0.05)
time.sleep(0.5)
(run / "saved").touch()
"""
COMMAND = """
import signal, sys, time
def end(*_):
    print("asked to end", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("works", flush=True)
time.sleep(60)
"""


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_training_saves_and_commands_end_before_the_pod_does(tmp_path: Path) -> None:
    run, other, command = tmp_path / "run", tmp_path / "other", tmp_path / "bin/flowmapsr"
    for folder in (run, other, command.parent):
        folder.mkdir()
    RunPaths(run).recipe.touch()
    command.write_text(COMMAND)
    with (
        started("-c", WORKER, str(run)) as worker,
        started("-c", WORKER, str(other)) as no_training,  # of Ray, whose logs have such names
        started(str(command), "train") as driver,
    ):
        end_trainings(psutil.Process(one.pid) for one in (worker, no_training, driver))
        assert (run / "saved").is_file()
        assert no_training.poll() is None
        assert not RunPaths(other).stop.exists()
        assert driver.stdout is not None
        assert driver.stdout.read() == b"asked to end\n"

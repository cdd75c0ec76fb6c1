"""Compares the speed of a training with and without its MLflow and Prefect servers.

Run as `python -m tests.benchmarks.servers_gone`. One training by the command line with two workers,
an MLflow and a Prefect server on the same cores. Phases with both servers running alternate with
phases in which one is frozen (it accepts calls and never answers) or killed; a phase is compared
with the mean of its neighbors. Finally MLflow must have every reported metric, once and in order.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from mlflow import MlflowClient

from tests.benchmarks.build import build_demo_dataset
from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from tests.support.mlflow_server import mlflow_server
from tests.support.ports import free_port
from tests.support.prefect_servers import Server, running_server
from tests.support.processes import kill_tree
from training.run_dir.paths import METRICS_JOURNAL

SECONDS = 40.0
ROUNDS = 2
LIMIT = 1.02
BOTH = "both running"


class Phase(NamedTuple):
    name: str
    start: float
    end: float


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_demo_dataset(folder)
        with running_server(folder) as prefect:
            phases, lost = _train(folder, prefect)
        times = _step_times(folder / "run", phases)
    print("\nMilliseconds of a step of the demo's network, 16 samples, two workers\n")
    print("| phase | ms a step | over its neighbors |")
    print("|---|---|---|")
    ratios: dict[str, list[float]] = {}
    for index, (phase, one) in enumerate(zip(phases, times, strict=True)):
        ratio = ""
        if phase.name != BOTH:
            neighbors = times[max(0, index - 1) : index] + times[index + 1 : index + 2]
            ratios.setdefault(phase.name, []).append(one / statistics.mean(neighbors))
            ratio = f"{ratios[phase.name][-1]:.3f}"
        print(f"| {phase.name} | {one:.1f} | {ratio} |")
    slowest = max(statistics.mean(found) for found in ratios.values())
    kept = slowest <= LIMIT and not lost
    print(
        f"\nmeans of a kind at most {slowest:.3f} (limit {LIMIT}); metrics lost: {lost}: ", end=""
    )
    print("yes" if kept else "NO")
    return 0 if kept else 1


def _train(folder: Path, prefect: Server) -> tuple[list[Phase], int]:
    """The phases of a training, and how many of its metrics MLflow lacks at the end."""
    port, run, phases = free_port(), folder / "run", list[Phase]()
    uri = f"http://127.0.0.1:{port}"
    settings = [f"manifest={folder / 'dataset'}", f"output={run}", "workers=2"]
    stage = ["stages.warmup.steps=100000", "stages.warmup.global_batch=16"]
    command = [sys.executable, "-m", "pipelines.cli", "train", "demo", *settings, *stage]
    env = {**os.environ, **prefect.env, "MLFLOW_TRACKING_URI": uri}

    def phase(name: str) -> None:
        start = time.time()
        time.sleep(SECONDS)
        phases.append(Phase(name, start, time.time()))

    with (folder / "train.log").open("wb") as log:
        training = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(ROUNDS):
            with mlflow_server(folder, port) as mlflow:
                eventually(lambda: _steps(run) > 60, training, seconds=300, poll=1)
                for server, name in ((mlflow, "MLflow"), (prefect.process, "Prefect")):
                    phase(BOTH)
                    with frozen(server):
                        phase(f"{name} frozen")
                phase(BOTH)
            phase("MLflow killed")
        with mlflow_server(folder, port):
            phase(BOTH)
            kill_tree(prefect.process)
            phase("Prefect killed")
            training.send_signal(signal.SIGTERM)
            training.wait(timeout=120)
            return phases, _lost(run, MlflowClient(uri))
    finally:
        training.kill()
        print((folder / "train.log").read_text(), file=sys.stderr)


@contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Suspends a process and all its descendants for the block."""
    root = psutil.Process(process.pid)
    family = [root, *root.children(recursive=True)]
    for one in family:
        one.suspend()
    try:
        yield
    finally:
        for one in family:
            one.resume()


def _reports(run: Path) -> list[dict[str, float]]:
    """Step and time of the loop's reports, in order."""
    journal = run / "stages" / "warmup" / METRICS_JOURNAL
    if not journal.exists():
        return []
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    metrics = [line for line in lines if line["kind"] == "metrics"]
    return [line for line in metrics if "perf/images_per_second" in line["values"]]


def _steps(run: Path) -> float:
    reports = _reports(run)
    return reports[-1]["step"] if reports else 0


def _step_times(run: Path, phases: list[Phase]) -> list[float]:
    """Milliseconds of a step in each phase, by the reports inside it."""
    found = []
    for phase in phases:
        inside = [one for one in _reports(run) if phase.start <= one["time_ms"] / 1000 <= phase.end]
        first, last = inside[0], inside[-1]
        found.append((last["time_ms"] - first["time_ms"]) / (last["step"] - first["step"]))
    return found


def _lost(run: Path, client: MlflowClient) -> int:
    """Reports that MLflow lacks, or has twice or out of order."""
    names = mlflow_names(run)
    history = client.get_metric_history(names.stages["warmup"], "perf/images_per_second")
    reported, sent = [one["step"] for one in _reports(run)], [point.step for point in history]
    return 0 if reported == sent else max(1, len(set(reported) ^ set(sent)))


if __name__ == "__main__":
    sys.exit(main())

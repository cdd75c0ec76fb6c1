"""What reporting to MLflow costs the first worker of the smallest recipe, the demo's first stage.

Run as `python -m tests.benchmarks.tracking`. A report of 40 metrics every ten steps goes to the
stage's run and, in part, to the parent's, at the pace of a bare PyTorch loop over the demo's
batches. The cost is CPU time: in the loop, which waits for it, and of all threads, over the time of
the steps in between. The run has 20,000 steps in its journals already. Store is a real server, or a
database file that this process writes to itself.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from pipelines.recipes.load import training_recipe
from tests.benchmarks.system_step import bare_step
from tests.support.eventually import eventually
from tests.support.mlflow_server import mlflow_server
from tests.support.ports import free_port
from training.loop import LOG_EVERY
from training.run_dir.paths import StagePaths
from training.run_dir.records import WorkerGroup
from training.tracking.journal import journals
from training.tracking.reporter import StageReporter
from training.tracking.tracker import Tracker

STEPS_BEFORE, SECONDS = 20_000, 30.0
LIMIT = 0.01
WORKERS = WorkerGroup(hosts=("a", "b"), devices=("CPU", "CPU"), on_gpus=False)


def main() -> int:
    recipe = training_recipe("demo", ["manifest=/none", "output=/none"])
    pace = LOG_EVERY * bare_step(recipe.stages[0].global_batch).cpu / 1000
    print(
        f"\nA report every {pace:.2f} s, of {LOG_EVERY} steps of {1000 * pace / LOG_EVERY:.1f} ms\n"
    )
    print("| store | start | ms of a report in the loop | of all threads | over the steps |")
    print("|---|---|---|---|---|")
    shares = []
    with tempfile.TemporaryDirectory() as name:
        server, file = Path(name, "server"), Path(name, "file")
        server.mkdir()
        file.mkdir()
        port = free_port()
        with mlflow_server(server, port):
            shares.append(_row("server", server, f"http://127.0.0.1:{port}", pace))
        shares.append(_row("database file", file, f"sqlite:///{file / 'mlflow.db'}", pace))
    kept = max(shares) <= LIMIT
    print(f"\nat most {LIMIT:.0%}: {'yes' if kept else 'NO'}")
    return 0 if kept else 1


def _row(store: str, folder: Path, uri: str, pace: float) -> float:
    """Prints the row of a store; returns the cost over the time of the steps."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    run = folder / "run"
    recipe = training_recipe("demo", ["manifest=/none", f"output={run}"])
    stage = StagePaths(run, recipe.stages[0].name)
    parent = Tracker(run, experiment="benchmark")
    first = StageReporter(recipe, stage, WORKERS, since=time.monotonic())
    first.started(0, skipped_checkpoints="")
    for step in range(LOG_EVERY, STEPS_BEFORE + 1, LOG_EVERY):
        first.metrics(step, _report(step))
    first.tracker.close("KILLED")
    begin = time.perf_counter()
    reporter = StageReporter(recipe, stage, WORKERS, since=time.monotonic())
    reporter.started(STEPS_BEFORE, skipped_checkpoints="")
    start = time.perf_counter() - begin
    all_of_them = [journal for home in (run, stage.root) for journal in journals(home)]
    eventually(lambda: all(journal.all_sent for journal in all_of_them), seconds=300)
    in_loop, step = 0.0, STEPS_BEFORE
    begin, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < SECONDS:
        before, step = time.perf_counter(), step + LOG_EVERY
        reporter.metrics(step, _report(step))
        in_loop += time.perf_counter() - before
        time.sleep(pace)
    cpu, reports = time.process_time() - cpu, (step - STEPS_BEFORE) / LOG_EVERY
    share = cpu / (reports * pace)
    print(
        f"| {store} | {start:.2f} s | {1000 * in_loop / reports:.2f} | {1000 * cpu / reports:.2f} "
        f"| {share:.2%} |"
    )
    reporter.tracker.close("FINISHED")
    parent.close("FINISHED")
    return share


def _report(step: int) -> dict[str, float]:
    """As many metrics as a stage reports; one in three is shown on the parent run too."""
    values = {f"loss/term_{number}": 1.0 / (step + number) for number in range(8)}
    values |= {f"system/value_{number}": float(step + number) for number in range(28)}
    speeds = {"perf/images_per_second": 9.0, "perf/data_wait_fraction": 0.01}
    return {**values, **speeds, "optim/gradient_norm": 1.0, "data/images_seen": 8.0 * step}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())

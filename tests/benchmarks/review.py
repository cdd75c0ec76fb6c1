"""Seconds until `flowmapsr review` prints the address, with many trainings in one experiment.

Run as `python -m tests.benchmarks.review [TRAININGS]`. The database has MLflow's own tables and
rows inserted in bulk: parents with the parameters of a real recipe, the last values of the metrics
that a training with validation has, curves of 20,000 steps, and a run for each stage.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient

from datagen.records import flatten
from pipelines.recipes.load import training_recipe

TRAININGS, STEPS, EVERY, REPEATS = 200, 20_000, 10, 3
CURVES = [f"loss/term_{number}" for number in range(6)] + [
    *("optim/gradient_norm", "perf/images_per_second"),
    *("perf/data_wait_fraction", "cost/worker_hours"),
]
HELD_OUT = [f"{of}{scale}_{way}"
    for of in ("psnr", "ssim", "gain")
    for scale in ("", "_x1", "_x2", "_x4", "_x8", "_x16")
    for way in ("nfe1", "nfe2", "nfe4")]  # fmt: skip
LAST = [*CURVES, *(f"{kind}/{name}" for kind in ("val", "best", "last") for name in HELD_OUT)]

Row = tuple[str, float, int, str, int, int]


def main() -> None:
    trainings = int(sys.argv[1]) if len(sys.argv) > 1 else TRAININGS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        fill(path, trainings)
        size = path.stat().st_size / 1e9
        print(f"\n{trainings} trainings of {STEPS:,} steps, a database of {size:.1f} GB\n")
        print("| command | seconds | of them CPU |")
        print("|---|---|---|")
        for words in (["review"], ["review", "photos"]):
            wall, cpu = map(min, zip(*(timed(words, path) for _ in range(REPEATS)), strict=True))
            print(f"| `flowmapsr {' '.join(words)} --json` | {wall:.1f} | {cpu:.1f} |")


def timed(words: list[str], store: Path) -> tuple[float, float]:
    """From the start of the process to its end: on the clock, and of CPU time."""
    start, before = time.perf_counter(), _children_seconds()
    command = [sys.executable, "-m", "pipelines.cli", *words, "--json"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    found = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    assert found["sorted_by"] == "best/psnr_nfe1" and found["problems"] == []
    return time.perf_counter() - start, _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fill(path: Path, trainings: int) -> None:
    """Makes the database."""
    client = MlflowClient(f"sqlite:///{path}")
    experiment = int(client.create_experiment("photos"))
    recipe = training_recipe("flowmapsr-small", ["manifest=/data/set", "output=/data/run"])
    settings = recipe.model_dump(mode="json", exclude={"stages"})
    settings |= {stage.name: stage.content() for stage in recipe.stages}
    params = flatten(settings)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous = OFF")
        for number in range(trainings):
            run = add_run(database, experiment, f"runs/{number}", role="training")
            values = {**params, "seed": str(number), "output": f"/data/{number}"}
            insert(database, "params", [(*one, run) for one in values.items()])
            insert(database, "latest_metrics", last(number, run))
            insert(database, "metrics", curves(number, run))
            for stage in recipe.stages:
                child = add_run(database, experiment, f"runs/{number} · {stage.name}", role="stage")
                insert(database, "latest_metrics", last(number, child))


def add_run(database: sqlite3.Connection, experiment: int, name: str, *, role: str) -> str:
    run, now = uuid.uuid4().hex, int(time.time() * 1000)
    row = (run, name, "LOCAL", "", "", "anna", "FINISHED", now, now, "", "active", "/none")
    insert(database, "runs", [(*row, experiment, None)])
    tags = {"role": role, "mlflow.runName": name}
    insert(database, "tags", [(*one, run) for one in tags.items()])
    return run


def last(number: int, run: str) -> Iterator[tuple[str, float, int, int, int, str]]:
    return ((name, number / 100, 1, STEPS, 0, run) for name in LAST)


def curves(number: int, run: str) -> Iterator[Row]:
    for step in range(EVERY, STEPS + 1, EVERY):
        yield from ((name, number / step, step, run, step, 0) for name in CURVES)


def insert(database: sqlite3.Connection, table: str, rows: object) -> None:
    width = {"params": 3, "tags": 3, "metrics": 6, "latest_metrics": 6, "runs": 14}[table]
    database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", rows)


if __name__ == "__main__":
    main()

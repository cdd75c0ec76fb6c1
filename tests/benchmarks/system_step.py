"""Times a step of the whole system over a bare PyTorch loop, and two workers over one.

Run as `python -m tests.benchmarks.system_step`. The system is Ray Train, DeepSpeed, loader,
tracking, pictures and checkpoints; the loop is forward, backward, clipping and AdamW on one batch
in memory, in a separate process. Both train the demo's network by flow matching with one thread
per worker. Loop, one worker and two alternate, as a machine's speed may drift by a tenth within
minutes; each time is the median over reports of ten steps, each ratio the median over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datagen.io.lock import TRAINING, output_lock
from pipelines.cluster.ray_session import ray_cluster
from pipelines.cluster.train_launcher import training_workers
from pipelines.recipes.load import training_recipe
from tests.benchmarks.build import build_demo_dataset
from training.loop import LOG_EVERY
from training.run_dir.recipe_guard import write_recipe
from training.settings.recipe import TrainingRecipe
from training.tracking.tracker import reset_tracking

ROUNDS = 3
STEPS = 80
SKIPPED = 3
"""Reports at the start that are not counted: memory is first touched in them."""
BATCH, MICRO_BATCH = 32, 8
LIMIT, LEAST = 1.05, 1.6


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_demo_dataset(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        with ray_cluster(cpus=2):
            rounds = [
                (
                    bare_step(BATCH).wall,
                    _system(folder / str(number), 1),
                    _system(folder / str(number), 2),
                )
                for number in range(ROUNDS)
            ]
    print(f"\nMilliseconds of a step of {BATCH} samples, the demo's network\n")
    print("| round | bare loop | system, 1 worker | over the loop | 2 workers | one over two |")
    print("|---|---|---|---|---|---|")
    for number, (bare, one, two) in enumerate(rounds, 1):
        print(
            f"| {number} | {bare:.1f} | {one:.1f} | {one / bare:.3f} | {two:.1f} "
            f"| {one / two:.2f} |"
        )
    overhead = statistics.median(one / bare for bare, one, _ in rounds)
    gain = statistics.median(one / two for _, one, two in rounds)
    kept = overhead <= LIMIT and gain >= LEAST
    print(f"\nmedian {overhead:.3f}, at most {LIMIT}; {gain:.2f}, at least {LEAST}: ", end="")
    print("yes" if kept else "NO")
    return 0 if kept else 1


def _recipe(folder: Path, workers: int) -> TrainingRecipe:
    settings: dict[str, Any] = {
        "manifest": str(folder.parent / "dataset"),
        "output": str(folder / f"run{workers}"),
        "workers": workers,
    }
    recipe = training_recipe("demo", settings)
    warmup = recipe.stage("warmup").model_copy(
        update={"steps": STEPS, "global_batch": BATCH, "micro_batch": MICRO_BATCH}
    )
    return recipe.model_copy(update={"stages": (warmup,)})


def _system(folder: Path, workers: int) -> float:
    """Milliseconds of a step."""
    recipe = _recipe(folder, workers)
    with output_lock(recipe.output, TRAINING) as lock:
        write_recipe(recipe, on_replace=reset_tracking)
        with training_workers(recipe, lock) as group:
            group.finished("warmup")
    journal = Path(recipe.output) / "stages" / "warmup" / "tracking.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    rates = [
        event["values"]["perf/images_per_second"]
        for event in events
        if event["kind"] == "metrics" and "perf/images_per_second" in event["values"]
    ]
    return 1000 * BATCH / statistics.median(rates[SKIPPED:])


class Step(NamedTuple):
    """Milliseconds of a step; those of the CPU hardly depend on what else runs."""

    wall: float
    cpu: float


def bare_step(samples: int) -> Step:
    """A step of so many samples in the bare loop, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.system_step", "bare", str(samples)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=env, check=True, capture_output=True).stdout
    return Step(*map(float, output.split()))


def _time_bare_loop(samples: int) -> None:
    from training.data.loader import Batch
    from training.data.planned import Position
    from training.flowmap.network import FlowMapNet
    from training.flowmap.objective import FlowMapObjective, FlowMapStageModel

    torch.set_num_threads(1)
    recipe = _recipe(Path("/"), 1)
    model = FlowMapStageModel(FlowMapNet(recipe.model, latent_channels=192), None)
    objective = FlowMapObjective(recipe.stages[0].objective, perceptual_loss=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    hq, lq = torch.randn(2, min(samples, MICRO_BATCH), 192, 16, 16)
    batch = Batch((), {"hq": hq, "lq": lq}, Position())
    generator = torch.Generator().manual_seed(0)
    seconds, cpu_seconds = [], []
    for _ in range(STEPS // LOG_EVERY):
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(LOG_EVERY):
            optimizer.zero_grad(set_to_none=True)
            for _ in range(samples // len(hq)):
                loss = objective(model, batch, generator).total * len(hq) / samples
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        seconds.append((time.perf_counter() - start) / LOG_EVERY)
        cpu_seconds.append((time.process_time() - cpu) / LOG_EVERY)
    print(*(1000 * statistics.median(each[SKIPPED:]) for each in (seconds, cpu_seconds)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        _time_bare_loop(int(sys.argv[2]))
    else:
        sys.exit(main())

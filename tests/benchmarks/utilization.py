"""Measures how well a recipe's stages use their device: time, MFU, memory, largest costs.

Run as `python -m tests.benchmarks.utilization flowmapsr-paper --sides 512 1024`; with neither Ray
nor Prefect, on one device. Steps are those of `one_step.py`. Micro batches double until memory is
full, or are those of `--batches`; each side has a new trainer, because one that ran out of memory
cannot be used further. MFU is the counted operations over the peak of the GPU's data sheet (with
checkpointing, HFU); none on CPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable

import torch

from pipelines.recipes.load import training_recipe
from tests.benchmarks.one_step import (
    Shape,
    free_memory,
    join_as_only_worker,
    largest_costs,
    median_seconds,
    new_trainer,
    peak_memory,
    random_batch,
    rate,
    shares,
    train_step,
)
from training.data.loader import Batch
from training.monitoring.mfu import counted_flops
from training.settings.objective import NoPerceptual
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.trainer import Trainer

WARM, TIMED, COSTS = 2, 5, 3
LARGEST = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--stages", nargs="+", default=["warmup", "distill", "guidance"])
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--downsample", type=int, default=8)
    parser.add_argument("--compile", choices=["none", "student"])
    words = parser.parse_args()
    join_as_only_worker()
    recipe = training_recipe(words.recipe, ["manifest=/none", "output=/none"])
    shape = Shape(words.channels, words.downsample)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        "| stage | side | micro batch | ms a step | images/s | TFLOP/s | MFU | memory GB "
        f"| {COSTS} largest costs |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in words.stages:
        settings = recipe.stage(name)
        changed = {"perceptual": NoPerceptual(), "compile": words.compile or settings.compile}
        settings = settings.model_copy(update=changed)
        for side in words.sides:
            sizes = words.batches or [2**n for n in range(LARGEST.bit_length())]
            _measure(recipe, settings, shape, side, sizes, device)
            # Of compiled code torch keeps a limited number of versions.
            torch.compiler.reset()


def _measure(
    recipe: TrainingRecipe,
    settings: StageSettings,
    shape: Shape,
    side: int,
    sizes: Iterable[int],
    device: torch.device,
) -> None:
    """Prints a row for each size of micro batch, up to the first that does not fit."""
    trainer = new_trainer(recipe, settings, shape, device)
    try:
        for size in sizes:
            free_memory(device)
            print(f"| {settings.name} | {side} | {size} |", end=" ", flush=True)
            batch = random_batch(size, side, shape, device)
            print(_speed(trainer, batch, settings, device), end=" ", flush=True)
            costs = largest_costs(lambda batch=batch: train_step(trainer, batch), device)
            print(shares(costs, COSTS), "|", flush=True)
    except torch.OutOfMemoryError:
        print("out of memory |", flush=True)
    finally:
        trainer.close()


def _speed(trainer: Trainer, batch: Batch, settings: StageSettings, device: torch.device) -> str:
    """The cells of time, operations and memory."""
    seeds = itertools.count()
    seconds = median_seconds(
        lambda: train_step(trainer, batch, seed=next(seeds)), device, warm=WARM, timed=TIMED
    )
    memory = peak_memory(device)
    with counted_flops(compiled=settings.compile != "none") as counter:
        train_step(trainer, batch, seed=next(seeds))
    tflops, mfu = rate(counter.flops, seconds, device, settings.precision)
    size = len(batch.keys)
    return f"{1000 * seconds:.0f} | {size / seconds:.2f} | {tflops} | {mfu} | {memory} |"


if __name__ == "__main__":
    sys.exit(main())

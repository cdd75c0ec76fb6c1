"""Measures how well a recipe's stages use their device: time, MFU, memory, largest costs.

Run as `python -m tests.benchmarks.utilization flowmapsr-paper --sizes 512=16 1024=4`; with neither
Ray nor Prefect, on one device. Steps are those of `one_step.py`; an adversarial stage has a row for
each network's turn. A size is a side with its micro batch, or a side alone, whose micro batches
double until memory is full. Each side has a new trainer, because one that ran out of memory cannot
be used further. MFU is the counted operations over the peak of the GPU's data sheet (with
checkpointing, HFU); none on CPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

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
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size_of,
        default=[(512, None), (1024, None)],
        metavar="SIDE[=BATCH]",
        help="sides of photos in pixels; one with several micro batches is named several times",
    )
    parser.add_argument("--stages", nargs="+", help="all of the recipe's unless given")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--downsample", type=int, default=8)
    parser.add_argument("--compile", choices=["none", "student"])
    words = parser.parse_args()
    join_as_only_worker()
    recipe = training_recipe(words.recipe, ["manifest=/none", "output=/none"])
    shape = Shape(words.channels, words.downsample)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        "| stage | turn | side | micro batch | ms a step | images/s | TFLOP/s | MFU | memory GB "
        f"| {COSTS} largest costs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in words.stages or [stage.name for stage in recipe.stages]:
        settings = recipe.stage(name)
        changed = {"perceptual": NoPerceptual(), "compile": words.compile or settings.compile}
        settings = settings.model_copy(update=changed)
        for side, sizes in batches_of(words.sizes).items():
            _measure(recipe, settings, shape, side, sizes, device)
            # Of compiled code torch keeps a limited number of versions.
            torch.compiler.reset()


def size_of(word: str) -> tuple[int, int | None]:
    """`512=16` or `512` as a side and its micro batch."""
    side, _, batch = word.partition("=")
    return int(side), int(batch) if batch else None


def batches_of(sizes: Sequence[tuple[int, int | None]]) -> dict[int, list[int]]:
    """The micro batches of each side, which double where none is given."""
    doubling = [2**n for n in range(LARGEST.bit_length())]
    found: dict[int, list[int]] = {}
    for side, batch in sizes:
        found.setdefault(side, []).extend(doubling if batch is None else [batch])
    return found


def turns_of(trainer: Trainer, settings: StageSettings) -> dict[str, int]:
    """A step of each kind that the stage has."""
    adversarial = settings.adversarial
    first = 0 if adversarial is None else adversarial.discriminator.warmup_steps
    # The generator's turn comes before the discriminator's.
    return {trainer.step_kind(step): step for step in (first, first + 1)}


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
            for turn, step in turns_of(trainer, settings).items():
                free_memory(device)
                print(f"| {settings.name} | {turn} | {side} | {size} |", end=" ", flush=True)
                batch = random_batch(size, side, shape, device)
                one = partial(train_step, trainer, batch, step=step)
                print(_speed(one, size, settings, device), end=" ", flush=True)
                print(shares(largest_costs(one, device), COSTS), "|", flush=True)
    except torch.OutOfMemoryError:
        print("out of memory |", flush=True)
    finally:
        trainer.close()


def _speed(
    step: Callable[..., None], size: int, settings: StageSettings, device: torch.device
) -> str:
    """The cells of time, operations and memory."""
    seeds = itertools.count()
    seconds = median_seconds(lambda: step(seed=next(seeds)), device, warm=WARM, timed=TIMED)
    memory = peak_memory(device)
    with counted_flops(compiled=settings.compile != "none") as counter:
        step(seed=next(seeds))
    tflops, mfu = rate(counter.flops, seconds, device, settings.precision)
    return f"{1000 * seconds:.0f} | {size / seconds:.2f} | {tflops} | {mfu} | {memory} |"


if __name__ == "__main__":
    sys.exit(main())

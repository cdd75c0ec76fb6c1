"""Measures how well a recipe's stages use their device: time, MFU, memory, largest costs.

Run as `python -m tests.benchmarks.utilization flowmapsr-paper --sides 512 1024`; with neither Ray
nor Prefect, on one device. Steps are those of training (forward, targets, backward, optimizer in a
DeepSpeed engine) on random latents; the perceptual loss is left out, as its weights are a download.
Micro batches double until memory is full, or are those of `--batches`; each side has a new trainer,
because one that ran out of memory cannot be used further. MFU is the counted operations
over the peak of the GPU's data sheet (with checkpointing, HFU); none on CPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from datagen.samples.codecs import load_codec
from datagen.settings import Dct8Settings
from pipelines.recipes.load import training_recipe
from training.data.loader import Batch
from training.data.schedule import Position
from training.flowmap.initial import InitialNetwork
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import stand_in
from training.flowmap.system import FlowMapStage
from training.monitoring.mfu import Peak, counted_flops, gpu_peak
from training.run_dir.paths import StagePaths
from training.settings.objective import NoPerceptual
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.system_protocol import StageInputs
from training.trainer import Trainer

WARM, TIMED, COSTS = 2, 5, 3
LARGEST = 64


class Shape(NamedTuple):
    """Of latents: channels, and the photo's side over the latents'."""

    channels: int
    downsample: int


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
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
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
            _free()


def _measure(
    recipe: TrainingRecipe,
    settings: StageSettings,
    shape: Shape,
    side: int,
    sizes: Iterable[int],
    device: torch.device,
) -> None:
    """Prints a row for each size of micro batch, up to the first that does not fit."""
    is_gpu = device.type == "cuda"
    peak = gpu_peak(torch.cuda.get_device_name(device), settings.precision) if is_gpu else None
    trainer = _trainer(recipe, settings, shape, device)
    try:
        for size in sizes:
            print(f"| {settings.name} | {side} | {size} |", end=" ", flush=True)
            batch = _batch(size, side, shape, device)
            print(_speed(trainer, batch, peak, settings, device), end=" ", flush=True)
            print(_largest_costs(trainer, batch, device), "|", flush=True)
    except torch.OutOfMemoryError:
        print("out of memory |", flush=True)
    finally:
        trainer.close()


def _free() -> None:
    """Releases the trainer's memory and its compiled code, of which torch keeps a limited number
    of versions."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def _trainer(
    recipe: TrainingRecipe, settings: StageSettings, shape: Shape, device: torch.device
) -> Trainer:
    torch.manual_seed(0)
    with device:
        net = FlowMapNet(recipe.model, latent_channels=shape.channels)
    codec = load_codec(Dct8Settings(), device="cpu")  # instead of a VAE, which no step here calls
    inputs = StageInputs(
        recipe=recipe.model_copy(update={"stages": (settings,)}),
        folder=StagePaths(Path(recipe.output), settings.name),
        dataset=None,  # type: ignore[arg-type]
        dataset_recipe=None,  # type: ignore[arg-type]
        codec=codec,
        device=device,
        world_size=1,
    )
    prompts = stand_in(recipe.model.prompt_channels)
    initial = InitialNetwork(net, prompts, None)
    return FlowMapStage(inputs, initial).trainer


def _batch(size: int, side: int, shape: Shape, device: torch.device) -> Batch:
    latent = side // shape.downsample
    hq, lq, neg = torch.randn(3, size, shape.channels, latent, latent, device=device)
    return Batch(("",) * size, hq, lq, neg, None, Position())


def _step(trainer: Trainer, batch: Batch, seed: int) -> None:
    trainer.micro_step(batch, torch.Generator().manual_seed(seed), step=0)


def _speed(
    trainer: Trainer,
    batch: Batch,
    peak: Peak | None,
    settings: StageSettings,
    device: torch.device,
) -> str:
    """The cells of time, operations and memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for seed in range(WARM + TIMED):
        start = _now(device)
        _step(trainer, batch, seed)
        seconds.append(_now(device) - start)
    with counted_flops(compiled=settings.compile != "none") as counter:
        _step(trainer, batch, WARM)
    median = statistics.median(seconds[WARM:])
    rate = counter.flops / median / 1e12
    mfu = "-" if peak is None else f"{rate / peak.tflops:.3f}"
    memory = (
        f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if device.type == "cuda" else "-"
    )
    size = len(batch.keys)
    return f"{1000 * median:.0f} | {size / median:.2f} | {rate:.3g} | {mfu} | {memory} |"


def _largest_costs(trainer: Trainer, batch: Batch, device: torch.device) -> str:
    """The kernels, or on a CPU the operators, that take the most time of a step."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        _step(trainer, batch, WARM)
        _now(device)
    times = [
        ((one.self_device_time_total if on_gpu else one.self_cpu_time_total), one.key)
        for one in found.key_averages()
    ]
    total = sum(taken for taken, _ in times)
    largest = sorted(times, reverse=True)[:COSTS]
    return "; ".join(f"{100 * taken / total:.0f} % {name[:90]}" for taken, name in largest)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())

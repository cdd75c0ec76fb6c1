"""Training steps on random latents without dataset and run folder, and how their cost is measured.

For benchmarks on one device; the step is that of a stage: forward, targets, backward and optimizer
in a DeepSpeed engine. The perceptual loss is left out, as its weights are a download.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from datagen.samples.codecs import load_codec
from datagen.settings import DctSettings
from tests.support.ports import free_port
from training.data.loader import Batch
from training.data.planned import MicroStep, Position
from training.flowmap.initial import InitialNetwork
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import stand_in
from training.flowmap.system import FlowMapStage
from training.monitoring.mfu import counted_flops, gpu_peak
from training.run_dir.paths import StagePaths
from training.settings.model import ModelSettings
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.system_protocol import StageInputs
from training.trainer import Trainer

LONGEST_NAME = 90
"""Characters of a kernel's name that a table shows."""
WHOLE_STEP = MicroStep()
FIRST_OF_TWO = MicroStep(index=0, count=2)
"""A micro batch after which no update follows."""


class Shape(NamedTuple):
    """Of latents: channels, and the photo's side over the latents'."""

    channels: int
    downsample: int


class Cost(NamedTuple):
    """A kernel, or on a CPU an operator, and its own time over all calls."""

    name: str
    ms: float


class Measured(NamedTuple):
    """A work, done once."""

    seconds: float
    memory: str
    """Peak, GB."""
    flops: float
    costs: list[Cost]


def join_as_only_worker() -> None:
    """The environment of a launcher with one worker, where none has set it."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(free_port())}.items():
        os.environ.setdefault(name, value)


def new_network(settings: ModelSettings, channels: int, device: torch.device) -> FlowMapNet:
    """A random network. Its last convolution is random too: a GPU is faster on the zeros that its
    backward pass would else be made of."""
    torch.manual_seed(0)
    with device:
        net = FlowMapNet(settings, latent_channels=channels)
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.01)
    return net.to(device)


def new_trainer(
    recipe: TrainingRecipe, settings: StageSettings, shape: Shape, device: torch.device
) -> Trainer:
    """A new network and its engine.

    Args:
        settings: the stage, which need not be one of the recipe's.
    """
    inputs = StageInputs(
        recipe=recipe.model_copy(update={"stages": (settings,)}),
        folder=StagePaths(Path(recipe.output), settings.name),
        datasets=(),
        dataset_recipe=None,  # type: ignore[arg-type]
        codec=load_codec(DctSettings()),  # instead of a VAE, which no step here calls
        device=device,
        world_size=1,
    )
    net = new_network(recipe.model, shape.channels, device)
    prompts = stand_in(recipe.model.prompt_channels)
    return FlowMapStage(inputs, InitialNetwork(net, prompts, None)).trainer


def random_batch(
    size: int, side: int, shape: Shape, device: torch.device, micro: MicroStep = WHOLE_STEP
) -> Batch:
    """
    Args:
        side: of the photos, pixels.
    """
    latent = side // shape.downsample
    hq, lq, neg = torch.randn(3, size, shape.channels, latent, latent, device=device)
    return Batch(("",) * size, {"hq": hq, "lq": lq, "neg": neg}, Position(), micro)


def train_step(trainer: Trainer, batch: Batch, *, seed: int = 0, step: int = 0) -> None:
    trainer.micro_step(batch, torch.Generator().manual_seed(seed), step=step)


def now(device: torch.device) -> float:
    """Seconds, when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_seconds(
    work: Callable[[], object], device: torch.device, *, warm: int, timed: int
) -> float:
    """Median over `timed` calls, after `warm` others."""
    seconds = []
    for _ in range(warm + timed):
        start = now(device)
        work()
        seconds.append(now(device) - start)
    return statistics.median(seconds[warm:])


def largest_costs(work: Callable[[], object], device: torch.device) -> list[Cost]:
    """What takes the time of a call, the largest first."""
    on_gpu = device.type == "cuda"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as run:
            work()
            now(device)
    costs = [
        Cost(one.key, (one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1000)
        for one in run.key_averages()
    ]
    return sorted(costs, key=lambda cost: -cost.ms)


def measured(
    work: Callable[[], object], device: torch.device, *, warm: int, timed: int
) -> Measured:
    """Times a work that is not compiled, then counts it, then looks where its time goes."""
    free_memory(device)
    seconds = median_seconds(work, device, warm=warm, timed=timed)
    memory = peak_memory(device)
    with counted_flops(compiled=False) as counter:
        work()
    return Measured(seconds, memory, counter.flops, largest_costs(work, device))


def shares(costs: list[Cost], shown: int) -> str:
    """The largest costs as parts of all, for a table."""
    total = sum(cost.ms for cost in costs)
    return "; ".join(
        f"{100 * cost.ms / total:.0f} % {cost.name[:LONGEST_NAME]}" for cost in costs[:shown]
    )


def peak_memory(device: torch.device) -> str:
    """10^9 bytes since `free_memory`, for a table."""
    if device.type != "cuda":
        return "-"
    return f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}"


def rate(flops: float, seconds: float, device: torch.device, precision: str) -> tuple[str, str]:
    """10^12 FLOP/s, and their share of the peak of the GPU's data sheet, for a table."""
    tflops = flops / seconds / 1e12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = gpu_peak(name, precision)
    return f"{tflops:.3g}", "-" if peak is None else f"{tflops / peak.tflops:.3f}"


def free_memory(device: torch.device) -> None:
    """Frees a GPU's memory that nothing refers to, and starts the next `peak_memory`."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

"""How large and how fast ELIR is, part by part, with random weights: they change neither."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from training.elir.model_folder import PARTS
from training.elir.network import Networks, build
from training.elir.sampler import restore
from training.monitoring.mfu import FlopCounter

EXPAND = 4
WHOLE = "whole"


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured; the defaults are the face tasks at 256 pixels."""

    width: int = 128
    middle_blocks: int = 1
    steps: int = 3
    side: int = 256
    batch: int = 1
    bf16: bool = False
    calls: int = 200
    """Timed, after a twentieth as many that are not."""


@dataclass(frozen=True)
class PartSpeed:
    """A part of the restoration, or all of it."""

    part: str
    parameters: int
    """Of the collapsed network, as it restores."""
    trained_parameters: int
    """Of the expanded one."""
    gflop: float
    """For one image, a multiplication and an addition being two."""
    images_per_second: float


@torch.inference_mode()
def measure_speed(settings: SpeedSettings, device: torch.device) -> list[PartSpeed]:
    """Encoder, coarse estimator, one step of the field, decoder, and the whole in all steps."""
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    sizes = settings.width, settings.middle_blocks
    with torch.device("meta"):
        expanded = build(*sizes, expand=EXPAND)
    nets = build(*sizes, expand=None)
    for part in PARTS:
        network = getattr(nets, part)
        network.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
    counts = {part: _parameters(getattr(nets, part)) for part in PARTS}
    trained = {part: _parameters(getattr(expanded, part)) for part in PARTS}
    counts[WHOLE], trained[WHOLE] = sum(counts.values()), sum(trained.values())
    rows = []
    for part, call in _calls(nets, settings, device).items():
        with FlopCounter() as counter:
            call()
        speed = settings.batch / _seconds(call, settings.calls, device)
        gflop = counter.flops / settings.batch / 1e9
        rows.append(PartSpeed(part, counts[part], trained[part], gflop, speed))
    return rows


def _calls(
    nets: Networks, settings: SpeedSettings, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    side, batch = settings.side, settings.batch
    x = torch.rand(batch, 3, side, side, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    z = nets.encoder(x)
    noise, t = torch.randn_like(z), torch.zeros(batch, device=device)
    return {
        "encoder": partial(nets.encoder, x),
        "coarse": partial(nets.coarse, z),
        "field": partial(nets.field, z, t),
        "decoder": partial(nets.decoder, z),
        WHOLE: partial(restore, nets, x, noise, 0.1, settings.steps),
    }


def _seconds(call: Callable[[], Tensor], calls: int, device: torch.device) -> float:
    """Of one call with the device's work done: the median, as other programs disturb some."""
    seconds = []
    for _ in range(1 + calls // 20 + calls):
        start = time.perf_counter()
        call()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[-calls:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

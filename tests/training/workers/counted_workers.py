"""One worker of `test_mfu`: a few steps of every case, with and without counting FLOPs.

Started by torchrun with the file for the results as its only argument.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.networks import flat, tiny_net
from tests.support.tiny import STAGE
from training.data.loader import Batch
from training.data.planned import Position
from training.engine.engine import Engine
from training.flowmap.objective import FlowMapObjective, FlowMapStageModel
from training.monitoring.mfu import FlopCounter, FlopMeter, Peak
from training.settings.stage import StageSettings
from training.trainer import ObjectiveTrainer

MICRO, WORKERS, STEPS, CHANNELS = 4, 2, 3, 12
SIDES = (4, 8, 4)
"""Of the latents, for each step."""
FLOW_MATCHING = {"kind": "flow_matching"}
SHORTCUT = {"kind": "self_distillation", "formulation": "shortcut", "time_grid_levels": 3}
EULERIAN = {"kind": "self_distillation", "formulation": "eulerian", "time_grid_levels": 3}
CASES: dict[str, dict[str, Any]] = {
    "zero1": {"objective": FLOW_MATCHING},
    "shortcut": {"objective": SHORTCUT, "precision": "bf16", "zero_stage": 2},
    "jvp": {"objective": EULERIAN},
    "zero3": {"objective": FLOW_MATCHING, "zero_stage": 3, "gradient_checkpointing": True},
}


def settings_of(name: str) -> StageSettings:
    stage = {**STAGE, "name": name, "micro_batch": MICRO, "global_batch": MICRO * WORKERS}
    return StageSettings.model_validate({**stage, "dynamic_weighting": False, **CASES[name]})


def fresh_model() -> FlowMapStageModel:
    net = tiny_net(channels=CHANNELS, transformer_layers=[0, 1])
    return FlowMapStageModel(net, None)


def batch_of(step: int) -> Batch:
    side = SIDES[step]
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    hq, lq = torch.randn(2, MICRO, CHANNELS, side, side, generator=generator)
    return Batch(tuple(map(str, range(MICRO))), {"hq": hq, "lq": lq}, Position())


def train(settings: StageSettings, meter: FlopMeter | None) -> tuple[Tensor, list[int]]:
    """The weights after a few steps, and the steps in which a new kind of step was counted."""
    model = fresh_model()
    if settings.gradient_checkpointing:
        model.net.unet.enable_gradient_checkpointing()
    engine = Engine(model, settings, device=torch.device("cpu"), world_size=WORKERS)
    objective = FlowMapObjective(
        settings.objective, perceptual_loss=None, gathered_parameters=engine.gathered_parameters
    )
    trainer = ObjectiveTrainer(engine, objective, settings)
    counted = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        if meter is None:
            trainer.micro_step(batch_of(step), generator, step=step)
            continue
        known = len(meter.per_image)
        with meter.micro_step(trainer.step_kind(step), batch_of(step)):
            trainer.micro_step(batch_of(step), generator, step=step)
        counted += [step] * (len(meter.per_image) - known)
    with engine.gathered_parameters():
        return flat(model), counted


def compare(name: str) -> dict[str, Any]:
    settings = settings_of(name)
    start = time.monotonic()
    meter = FlopMeter(
        peak=Peak(2.0, "test"), compiled=False, checkpointed=settings.gradient_checkpointing
    )
    watched, counted = train(settings, meter)
    seconds = time.monotonic() - start
    metrics = meter.metrics()
    plain, _ = train(settings, None)
    small, large = (meter.per_image["update", side, side] for side in (4, 8))
    forward, both = by_hand()
    return {
        "same_weights": torch.equal(watched, plain),
        "moved": not torch.equal(plain, flat(fresh_model()).to(plain.dtype)),
        "per_image": small,
        "forward": forward,
        "by_hand": both,
        "counted_steps": counted,
        "metrics": metrics,
        "seconds": seconds,
        "expected_flops": MICRO * (2 * small + large),
    }


def by_hand() -> tuple[float, float]:
    """FLOPs of one sample in plain torch: forward; forward and backward."""
    net, batch = fresh_model().net, batch_of(0)
    times = torch.ones(MICRO)
    with torch.no_grad(), FlopCounter() as forward:
        net(batch.lq, times, times)
    with FlopCounter() as both:
        net(batch.lq, times, times).sum().backward()
    return forward.flops / MICRO, both.flops / MICRO


def main() -> None:
    torch.set_num_threads(1)
    results = {name: compare(name) for name in CASES}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

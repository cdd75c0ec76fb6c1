"""One worker of `test_zero`: compares every case with plain torch on the whole batch.

Started by torchrun with the file for the results as its only argument.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.networks import flat, tiny_net
from tests.support.tiny import STAGE
from training.data.loader import Batch
from training.data.planned import MicroStep, Position
from training.engine.engine import Engine
from training.flowmap.objective import DynamicWeighting, FlowMapObjective, FlowMapStageModel
from training.settings.objective import SelfDistillation
from training.settings.stage import StageSettings

WORKERS = 2
CASES = [
    *((zero_stage, name) for name in ("eulerian", "lagrangian") for zero_stage in (3, 0)),
    *((zero_stage, "eulerian") for zero_stage in (1, 2)),
    *((zero_stage, "shortcut") for zero_stage in range(4)),
]
"""ZeRO stage and formulation. ZeRO-3 replaces torch's linear layers, which must not affect the
others: so it comes first."""
STEPS = ((4, 4, 4, 4), (6, 6), (2, 2, 2, 2, 2, 2), (0, 1, 1, 1))
"""Samples of every micro batch of a step, as from three pixel budgets; the last step has three
samples for two workers, one of which has none at first."""
CHANNELS = 12
CLIPPING, WEIGHT_DECAY = 0.5, 0.01


def cases() -> Iterator[StageSettings]:
    for zero_stage, formulation in CASES:
        objective = {
            "kind": "self_distillation",
            "formulation": formulation,
            "time_grid_levels": 3,
            # Some micro batches have no sample to distill, or none to guide.
            "flow_matching_fraction": 0.85,
            "guidance": {"negative_fraction": 0.5},
        }
        yield StageSettings.model_validate(
            {
                **STAGE,
                "name": f"zero{zero_stage}-{formulation}",
                "objective": objective,
                "zero_stage": zero_stage,
                "budgets": [
                    {
                        "side": 64 * max(sizes),
                        "probability": 1,
                        "global_batch": sum(sizes),
                        "micro_batch": max(sizes),
                    }
                    for sizes in STEPS
                ],
                "gradient_clipping": CLIPPING,
                "weight_decay": WEIGHT_DECAY,
            }
        )


def fresh_model() -> FlowMapStageModel:
    net = tiny_net(channels=CHANNELS, guidance_conditioning=True, time_embedding_scale=10.0)
    return FlowMapStageModel(net, DynamicWeighting())


def draw(step: int, index: int) -> tuple[Batch, torch.Generator]:
    """Micro batch `index` of a step and its random generator, on whichever worker."""
    seed = 100 * step + index
    sizes = STEPS[step]
    size = max(sizes[index], 1)
    hq, lq, neg = torch.randn(
        3, size, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(seed)
    )
    keys = tuple(map(str, range(size)))
    weight = sizes[index] * len(sizes) / sum(sizes)
    micro = MicroStep(index // WORKERS, len(sizes) // WORKERS, weight)
    batch = Batch(keys, {"hq": hq, "lq": lq, "neg": neg}, Position(), micro)
    return batch, torch.Generator().manual_seed(seed + 50)


@lru_cache
def reference(
    objective_settings: SelfDistillation, most: int | None = None
) -> tuple[list[float], Tensor]:
    """Gradient norms and weights of plain torch on all micro batches, or the first `most`."""
    model = fresh_model()
    objective = FlowMapObjective(objective_settings, perceptual_loss=None)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=STAGE["learning_rate"], weight_decay=WEIGHT_DECAY
    )
    norms = []
    for step, sizes in enumerate(STEPS):
        optimizer.zero_grad()
        for index, size in enumerate(sizes[:most]):
            loss = objective(model, *draw(step, index)).total
            (loss * size / max(sum(sizes[:most]), 1)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        norms.append(float(norm))
        optimizer.step()
    return norms, flat(model)


def distributed(settings: StageSettings) -> tuple[list[float], Tensor, float]:
    """The same through DeepSpeed on all workers, and the norm after a batch of NaN."""
    model = fresh_model()
    engine = Engine(model, settings, device=torch.device("cpu"), world_size=WORKERS)
    objective = FlowMapObjective(
        settings.objective, perceptual_loss=None, gathered_parameters=engine.gathered_parameters
    )
    norms = []
    for step, sizes in enumerate(STEPS):
        for micro in range(len(sizes) // WORKERS):
            update(engine, objective, *draw(step, micro * WORKERS + dist.get_rank()))
        norms.append(engine.gradient_norm)
    with engine.gathered_parameters():
        weights = flat(model)
    batch, generator = draw(1, dist.get_rank())  # a step with one micro batch
    broken = {**batch.latents, "hq": torch.full_like(batch.hq, math.nan)}
    update(engine, objective, dataclasses.replace(batch, latents=broken), generator)
    broken_norm = engine.gradient_norm
    engine.close()
    return norms, weights, broken_norm


def update(
    engine: Engine, objective: FlowMapObjective, batch: Batch, generator: torch.Generator
) -> None:
    engine.backward(engine(objective, batch, generator).total, batch.micro)
    engine.step(STAGE["learning_rate"])


def compare(settings: StageSettings, found: dict[str, Tensor]) -> dict[str, Any]:
    """The result of a case, whose weights are added to `found`."""
    norms, weights, broken_norm = distributed(settings)
    found[settings.name] = weights
    if dist.get_rank() > 0:
        return {}
    assert isinstance(settings.objective, SelfDistillation)
    start = flat(fresh_model())
    expected_norms, expected = reference(settings.objective)
    _, other = reference(settings.objective, 1)
    size = (expected - start).norm()
    return {
        "norms": norms,
        "expected_norms": expected_norms,
        "difference": float((weights - expected).norm() / size),
        "difference_of_a_part": float((other - expected).norm() / size),
        "largest_difference": float((weights - expected).abs().max()),
        "broken_norm_is_finite": math.isfinite(broken_norm),
    }


def relative(weights: Tensor, expected: Tensor) -> float:
    return float((weights - expected).norm() / expected.norm())


def main() -> None:
    torch.set_num_threads(1)
    weights: dict[str, Tensor] = {}
    results = {settings.name: compare(settings, weights) for settings in cases()}
    results["zero3 from zero0"] = {
        name: relative(weights[f"zero3-{name}"], weights[f"zero0-{name}"])
        for name in ("eulerian", "lagrangian")
    }
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

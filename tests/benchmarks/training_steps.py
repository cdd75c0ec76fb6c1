"""Times one training step of every objective on the same batch, as ratios to flow matching's.

Run with `python -m tests.benchmarks.training_steps`. With a forward pass F and a backward pass of
2 F, flow matching costs 3 F. The theory counts the teacher's passes by their samples, a JVP as 2 F.
Each round times all objectives and ratios are taken within a round, so that other load on the
machine affects all alike. A teacher's pass over a quarter of the batch costs somewhat more than a
quarter of F, most so with small batches.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from training.data.loader import Batch
from training.data.planned import Position
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import FlowMapObjective, FlowMapStageModel
from training.settings.model import ModelSettings
from training.settings.objective import FlowMatching, SelfDistillation

BATCH, CHANNELS, SIDE = 32, 16, 16
ROUNDS = 7
SHARE, NEGATIVE = 0.75, 0.1
LIMITS = {"SSD": 1.25, "ESD": 1.25, "LSD": 1.35}
"""Over flow matching; that of SSD holds for guided SSD over its unguided twin's theory too."""
MODEL = ModelSettings(
    block_channels=(64, 128),
    layers_per_block=1,
    transformer_layers=(0, 1),
    attention_heads=(4, 8),
    norm_groups=16,
    time_channels=64,
    prompt_channels=64,
)
GUIDANCE = {"negative_fraction": NEGATIVE}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "FM": {"kind": "flow_matching"},
    "SSD": {"formulation": "shortcut"},
    "ESD": {"formulation": "eulerian"},
    "LSD": {"formulation": "lagrangian"},
    "LSD-paper": {"formulation": "lagrangian", "lsd_velocity": "conditional"},
}
TEACHER = {"FM": 0, "SSD": 2, "ESD": 2, "LSD": 3, "LSD-paper": 2}
"""Passes over a distilled sample, a JVP as two."""


@dataclass(frozen=True)
class Case:
    name: str
    guided: bool

    @property
    def objective(self) -> FlowMapObjective:
        values = OBJECTIVES[self.name] | {"guidance": GUIDANCE if self.guided else None}
        kind = FlowMatching if self.name == "FM" else SelfDistillation
        return FlowMapObjective(kind.model_validate(values), perceptual_loss=None)

    @property
    def theory(self) -> float:
        """Cost over that of flow matching."""
        fm = 1.0 if self.name == "FM" else SHARE
        passes = 3 + (1 - fm) * TEACHER[self.name]
        if self.guided:
            # Not for distilled samples whose target uses the model's velocity.
            velocities = fm if self.name in ("SSD", "LSD") else 1
            passes += (1 - NEGATIVE) * velocities
        return passes / 3

    @property
    def label(self) -> str:
        return f"{self.name}, guided" if self.guided else self.name


CASES = [Case(name, guided) for guided in (False, True) for name in OBJECTIVES]


def measure() -> tuple[dict[Case, float], float]:
    """Median over rounds of a step's cost over flow matching's, and the seconds of the latter.

    A step is forward, targets and backward, without the optimizer.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = FlowMapStageModel(FlowMapNet(MODEL, latent_channels=CHANNELS), None).to(device)
    hq, lq, neg = torch.randn(3, BATCH, CHANNELS, SIDE, SIDE, device=device)
    batch = Batch((), {"hq": hq, "lq": lq, "neg": neg}, Position())
    objectives = {case: case.objective for case in CASES}
    seconds: dict[Case, list[float]] = {case: [] for case in CASES}
    for round_number in range(ROUNDS + 1):
        for case, objective in objectives.items():
            generator = torch.Generator().manual_seed(round_number)
            start = _now(device)
            model.zero_grad()
            objective(model, batch, generator).total.backward()
            if round_number:  # the first one warms up
                seconds[case].append(_now(device) - start)
    base = seconds[CASES[0]]
    ratios = {
        case: statistics.median(a / b for a, b in zip(values, base, strict=True))
        for case, values in seconds.items()
    }
    return ratios, statistics.median(base)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> int:
    torch.set_num_threads(1)
    ratios, seconds = measure()
    print(f"One step on a batch of {BATCH}, over flow matching's {1000 * seconds:.0f} ms\n")
    print("| objective | measured | theory |")
    print("|---|---|---|")
    for case, ratio in ratios.items():
        print(f"| {case.label} | {ratio:.2f} | {case.theory:.2f} |")
    limits = {
        f"{name} over FM": (ratios[Case(name, False)], limit) for name, limit in LIMITS.items()
    }
    guided = ratios[Case("SSD", True)] / Case("SSD", False).theory
    limits["guided SSD over its unguided twin's theory"] = (guided, LIMITS["SSD"])
    print()
    for name, (value, limit) in limits.items():
        print(f"{name}: {value:.2f}, {'at most' if value <= limit else 'NOT at most'} {limit}")
    return 0 if all(value <= limit for value, limit in limits.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

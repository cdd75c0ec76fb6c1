"""One worker of `test_adversarial`: both engines of an adversarial stage against plain torch.

Started by torchrun with the file for the results as its only argument: for each ZeRO stage, the
largest difference of any parameter. Each worker sees two of the four samples of every step; the
reference sees all four.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from tests.support.networks import tiny_net
from training.data.loader import Batch
from training.data.planned import MicroStep, Position
from training.engine.engine import Engine
from training.flowmap.adversarial import Discriminator
from training.flowmap.adversarial_trainer import AdversarialTrainer, discriminator_settings
from training.flowmap.lora import add_lora
from training.flowmap.objective import FlowMapObjective, FlowMapStageModel
from training.settings.adversarial import AdversarialSettings
from training.settings.objective import FlowMatching
from training.settings.stage import StageSettings

SAMPLES = 4
WORKERS = 2
ACCUMULATION = SAMPLES // WORKERS
STEPS = 5
CHANNELS = 12
WEIGHT = 0.7
ADVERSARIAL = AdversarialSettings.model_validate(
    {
        "lora": {"rank": 2, "target_modules": ["conv1", "time_emb_proj"]},
        "discriminator": {
            "channels": [8, 8],
            "strides": [2, 1, 1],
            "norm_groups": 4,
            "warmup_steps": 1,
            "learning_rate": 2e-3,
        },
        "flow_map_loss_weight": WEIGHT,
    }
)


def objective() -> FlowMapObjective:
    return FlowMapObjective(FlowMatching(time_grid_levels=2), perceptual_loss=None)


def stage(zero_stage: int) -> StageSettings:
    return StageSettings.model_validate(
        {
            "name": "gan",
            "objective": {"kind": "flow_matching", "time_grid_levels": 2},
            "steps": 100,
            "global_batch": SAMPLES,
            "micro_batch": 1,
            "learning_rate": 1e-3,
            "gradient_clipping": 0.5,
            "zero_stage": zero_stage,
            "precision": "fp32",
            "dynamic_weighting": False,
            "adversarial": ADVERSARIAL,
        }
    )


def networks() -> tuple[FlowMapStageModel, Discriminator]:
    net = tiny_net(channels=CHANNELS)
    add_lora(net, rank=2, targets=ADVERSARIAL.lora.target_modules)
    return FlowMapStageModel(net, None), Discriminator(
        ADVERSARIAL.discriminator, latent_channels=CHANNELS
    )


def sample(step: int, index: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * step + index)
    hq, lq, neg = torch.randn(3, 1, CHANNELS, 8, 8, generator=generator)
    micro = MicroStep(index // WORKERS, ACCUMULATION)
    return Batch(("key",), {"hq": hq, "lq": lq, "neg": neg}, Position(), micro)


def noise(step: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(7 * step + index)


def with_engines(model: FlowMapStageModel, discriminator: Discriminator, zero_stage: int) -> None:
    """Trains both networks for STEPS steps, in place."""
    settings, device = stage(zero_stage), torch.device("cpu")
    engines = [
        Engine(module, own, device=device, world_size=WORKERS)
        for module, own in (
            (model, settings),
            (discriminator, discriminator_settings(settings, ADVERSARIAL)),
        )
    ]
    trainer = AdversarialTrainer(*engines, objective(), stage=settings, settings=ADVERSARIAL)
    for step in range(STEPS):
        for index in range(dist.get_rank(), SAMPLES, WORKERS):
            trainer.micro_step(sample(step, index), noise(step, index), step=step)


def with_plain_torch(model: FlowMapStageModel, discriminator: Discriminator) -> int:
    """Trains the same steps with torch's optimizers on all samples; how many were clipped."""
    clipped = 0
    lora = [p for p in model.parameters() if p.requires_grad]
    scores = list(discriminator.parameters())
    rates = {"weight_decay": 0.01, "betas": (0.9, 0.999)}
    generator_optimizer = torch.optim.AdamW(lora, lr=1e-3, **rates)
    discriminator_optimizer = torch.optim.AdamW(scores, lr=2e-3, **rates)
    one, half, zero = torch.ones(1), torch.full((1,), 0.5), torch.zeros(1)
    for step in range(STEPS):
        generators_turn = step in (1, 3)
        losses = []
        for index in range(SAMPLES):
            batch = sample(step, index)
            with torch.no_grad():
                middle = batch.lq - 0.5 * model.net(batch.lq, one, half)
            predicted = middle - 0.5 * model.net(middle, half, zero)
            if generators_turn:
                lead = discriminator(batch.hq) - discriminator(predicted)
                original = objective()(model, batch, noise(step, index)).total
                losses.append(functional.softplus(lead).mean() + WEIGHT * original)
            else:
                lead = discriminator(predicted.detach()) - discriminator(batch.hq)
                losses.append(functional.softplus(lead).mean())
        trained = lora if generators_turn else scores
        optimizer = generator_optimizer if generators_turn else discriminator_optimizer
        gradients = torch.autograd.grad(torch.stack(losses).mean(), trained)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        # DeepSpeed's rule: scaled down by norm / clip + 1e-6 where that is above 1.
        norm = torch.stack([g.norm() for g in gradients]).norm()
        clipped += int(norm > 0.5)
        for parameter in trained:
            assert parameter.grad is not None
            parameter.grad /= max(1.0, (norm / 0.5 + 1e-6).item())
        optimizer.step()
    return clipped


def main(target: Path) -> None:
    torch.set_num_threads(1)
    differences = {}
    for zero_stage in (0, 1, 2):
        plain, engined = networks(), networks()
        start = copy.deepcopy(plain[0].state_dict()), copy.deepcopy(plain[1].state_dict())
        clipped = with_plain_torch(*plain)
        with_engines(*engined, zero_stage)
        differences[zero_stage] = {
            "clipped": clipped,
            "from plain torch": _largest_distance(plain, [m.state_dict() for m in engined]),
            "lora moved": _distance(engined[0].state_dict(), start[0]),
            "discriminator moved": _distance(engined[1].state_dict(), start[1]),
        }
    if dist.get_rank() == 0:
        target.write_text(json.dumps(differences))
    dist.barrier()


def _largest_distance(
    modules: tuple[nn.Module, nn.Module], states: list[dict[str, torch.Tensor]]
) -> float:
    pairs = zip(modules, states, strict=True)
    return max(_distance(module.state_dict(), state) for module, state in pairs)


def _distance(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == str(WORKERS)
    main(Path(sys.argv[1]))

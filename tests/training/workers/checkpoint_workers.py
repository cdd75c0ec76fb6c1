"""One worker of `test_exact_resume`: trains, saves, loads elsewhere and writes what it found.

Started by torchrun with the folder for checkpoints and the file for the results. One worker writes
first; two resume from that and run all cases; then one resumes from those.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.tiny import STAGE
from tests.training.workers import two_engines
from tests.training.workers.zero_update import CHANNELS, fresh_model
from training.checkpoints.reader import read_commit
from training.checkpoints.records import CheckpointOrigin, TrainerState
from training.checkpoints.store import Checkpoints
from training.data.loader import Batch
from training.data.planned import MicroStep, Position
from training.engine.engine import Engine, start_distributed
from training.flowmap.adversarial_trainer import AdversarialTrainer, discriminator_settings
from training.flowmap.objective import FlowMapObjective
from training.settings.objective import FlowMatching
from training.settings.stage import StageSettings
from training.trainer import ObjectiveTrainer, Trainer

MICRO = 4
SAVED, STEPS = 2, 4
"""The step that is saved, and the steps in all."""
MICRO_BATCHES = 2
"""Of a step, shared by the workers."""
ORIGIN = CheckpointOrigin(stage="s", recipe_digest="r", dataset_digest="d")
CASES: dict[str, dict[str, Any]] = {
    "zero0-fp32": {"zero_stage": 0, "ema_decay": 0.9, "ema_warmup": 3},
    "zero0-bf16": {"zero_stage": 0, "precision": "bf16", "ema_decay": 0.9},
    "zero1-fp32": {"zero_stage": 1},
    "zero1-bf16": {"zero_stage": 1, "precision": "bf16", "ema_decay": 0.9},
    "zero2-fp32": {"zero_stage": 2, "offload": "optimizer", "ema_decay": 0.9},
    "zero2-bf16": {"zero_stage": 2, "precision": "bf16"},
    "zero3-fp32": {"zero_stage": 3, "ema_decay": 0.9, "ema_warmup": 3},
    "zero3-bf16": {"zero_stage": 3, "precision": "bf16", "offload": "optimizer"},
}
MOVES = {
    "one worker to two": ("one", "zero2-fp32"),
    "zero 1 to 2": ("zero1-fp32", "zero2"),
    "zero 2 to 0": ("zero2-fp32", "zero0-fp32"),
    "zero 0 to 3": ("zero0-fp32", "zero3-fp32"),
    "zero 3 to 1": ("zero3-fp32", "zero1-ema"),
    "bf16 to fp32": ("zero2-bf16", "zero1-fp32"),
    "fp32 to bf16": ("zero1-fp32", "zero3-bf16"),
}
MOVES_TO_ONE = {
    "two workers to one, zero 3 to 2": ("zero3-fp32", "zero2-fp32"),
    "two workers to one, zero 2 to 0": ("zero2-fp32", "zero0-fp32"),
    "two workers to one, zero 0 to 1": ("zero0-fp32", "zero1-ema"),
}
CASES_OF_MOVES = {
    **CASES,
    "zero2": {"zero_stage": 2},
    "zero1-ema": {"zero_stage": 1, "ema_decay": 0.9, "ema_warmup": 3},
}


def settings(name: str) -> StageSettings:
    return StageSettings.model_validate(
        {
            **STAGE,
            "name": name,
            "objective": {"kind": "flow_matching", "time_grid_levels": 2},
            "global_batch": MICRO_BATCHES * MICRO,
            "micro_batch": MICRO,
            "gradient_clipping": 0.5,
            **CASES_OF_MOVES[name],
        }
    )


def fresh_trainer(name: str, *, perturbed: bool = False) -> Trainer:
    """A trainer before its first step; `perturbed`: with weights that loading must replace."""
    model = fresh_model()
    if perturbed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
    stage = settings(name)
    engine = Engine(model, stage, device=torch.device("cpu"), world_size=dist.get_world_size())
    objective = FlowMapObjective(FlowMatching(time_grid_levels=2), perceptual_loss=None)
    return ObjectiveTrainer(engine, objective, stage)


def fresh_gan(*, perturbed: bool = False) -> Trainer:
    model, discriminator = two_engines.networks()
    if perturbed:
        with torch.no_grad():
            for parameter in (*discriminator.parameters(), *model.parameters()):
                if parameter.requires_grad:
                    parameter.add_(0.1)
    stage = two_engines.stage(2).model_copy(update={"ema_decay": 0.9})
    adversarial = two_engines.ADVERSARIAL
    engines = [
        Engine(module, own, device=torch.device("cpu"), world_size=dist.get_world_size())
        for module, own in (
            (model, stage),
            (discriminator, discriminator_settings(stage, adversarial)),
        )
    ]
    return AdversarialTrainer(*engines, two_engines.objective(), stage=stage, settings=adversarial)


def train(trainer: Trainer, first: int, end: int) -> list[float]:
    """Steps `first` to `end`; the mean loss of each over all workers."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in range(first, end):
        sums = torch.zeros(len(trainer.terms), 2, dtype=torch.float64)
        for index in range(rank, micro_batches(trainer), workers):
            batch, generator = drawn(trainer, step, index)
            sums += trainer.micro_step(batch, generator, step=step).stacked(trainer.terms)
        dist.all_reduce(sums)
        trainer.end_step(dict(zip(trainer.terms, sums.tolist(), strict=True)), step=step)
        losses.append(float(sums[0, 0] / sums[0, 1]))
    return losses


def micro_batches(trainer: Trainer) -> int:
    return two_engines.SAMPLES if isinstance(trainer, AdversarialTrainer) else MICRO_BATCHES


def drawn(trainer: Trainer, step: int, index: int) -> tuple[Batch, torch.Generator]:
    """Micro batch `index` of a step and its random generator, on whichever worker."""
    if isinstance(trainer, AdversarialTrainer):
        return two_engines.sample(step, index), two_engines.noise(step, index)
    generator = torch.Generator().manual_seed(100 * step + index)
    hq, lq, neg = torch.randn(3, MICRO, CHANNELS, 4, 4, generator=generator)
    workers = dist.get_world_size()
    micro = MicroStep(index // workers, MICRO_BATCHES // workers)
    return Batch(tuple("abcd"), {"hq": hq, "lq": lq, "neg": neg}, Position(), micro), generator


def state(step: int) -> TrainerState:
    return TrainerState(
        step=step,
        images_seen=step,
        consumed={},
        errors=(),
        origin=ORIGIN,
        world_size=dist.get_world_size(),
        zero_stage=0,
    )


@dataclass(frozen=True)
class End:
    """Everything that a trainer holds on this worker, and its last losses."""

    losses: list[float]
    path: list[Tensor]
    """The master weights on this worker after each step."""
    tensors: dict[str, Tensor]
    texts: dict[str, bytes]

    def differences(self, other: End) -> list[str]:
        """Names of what differs in any bit."""
        found = ["losses"] if self.losses != other.losses else []
        found += ["texts"] if self.texts != other.texts else []
        if self.tensors.keys() != other.tensors.keys():
            return [*found, "names"]
        return found + [n for n, t in self.tensors.items() if not torch.equal(t, other.tensors[n])]


def resume_training(trainer: Trainer) -> End:
    """Trains the steps after the saved one; their result on this worker."""
    losses, path = [], []
    for step in range(SAVED, STEPS):
        losses += train(trainer, step, step + 1)
        path.append(held(trainer, "master"))
    snapshot = trainer.snapshot()
    tensors = {f"{n}:{k}": t for n, part in snapshot.networks.items() for k, t in part.items()}
    with trainer.engine.gathered_parameters():
        for name, parameter in trainer.engine.module.named_parameters():
            tensors[f"module:{name}"] = parameter.detach().clone()
    with trainer.engine.averaged(), trainer.engine.gathered_parameters():
        for name, parameter in trainer.engine.module.named_parameters():
            tensors[f"averaged:{name}"] = parameter.detach().clone()
    return End(losses, path, tensors, snapshot.texts)


def held(trainer: Trainer, kind: str) -> Tensor:
    """All tensors of a kind that this worker would save."""
    networks = trainer.snapshot().networks.values()
    return torch.cat([t for n in networks for k, t in n.items() if k.startswith(f"{kind}/")])


def naive_average(path: list[Tensor], warmup: int | None) -> Tensor:
    average = path[0]
    for update, point in enumerate(path[1:], 1):
        decay = 0.9 * (1 if warmup is None else 1 - math.exp(-update / warmup))
        average = decay * average + (1 - decay) * point
    return average


def exact(
    folder: Path, fresh: Callable[..., Trainer], *, warmup: int | None = None
) -> dict[str, Any]:
    """Compares an uninterrupted training with one loaded half-way into another trainer."""
    result = compared(folder, fresh(), fresh(perturbed=True), warmup)
    gc.collect()
    alive = [t for t in gc.get_objects() if isinstance(t, Tensor) and t.numel() > 100]
    return result | {"alive": [str(t.shape) for t in alive]}


def exact_of(folder: Path, name: str) -> dict[str, Any]:
    warmup = CASES_OF_MOVES[name].get("ema_warmup")
    return exact(folder, partial(fresh_trainer, name), warmup=warmup)


def compared(folder: Path, trainer: Trainer, other: Trainer, warmup: int | None) -> dict[str, Any]:
    path = [held(trainer, "master")]
    for step in range(SAVED):
        train(trainer, step, step + 1)
        path.append(held(trainer, "master"))
    checkpoints = Checkpoints(str(folder), keep=1)
    # Written while training continues: the files must hold the state at the call.
    checkpoints.save(trainer, state(SAVED))
    uninterrupted = resume_training(trainer)
    checkpoints.finish()
    restored = Checkpoints(str(folder), keep=1).resume(other, ORIGIN)
    resumed = resume_training(other)
    with other.engine.averaged():  # exchanges weights and averages
        average = held(other, "master")
    expected = naive_average([*path, *uninterrupted.path], warmup)
    for each in (trainer, other):
        each.close()
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, uninterrupted.differences(resumed))
    return {
        "restored step": restored.step if restored else None,
        "losses": uninterrupted.losses,
        "differences": sorted(set(sum(found, []))),
        "tensors": len(uninterrupted.tensors),
        "average's error": float((average - expected).abs().max()),
        "average's distance": float((average - uninterrupted.path[-1]).abs().max()),
    }


def stored(folder: Path) -> dict[str, Tensor]:
    """Every value of a checkpoint, assembled independently of the engine."""
    pieces: dict[str, dict[int, Tensor]] = {}
    step_folder = folder / f"step-{SAVED:06d}"
    for record in read_commit(str(step_folder)).files:
        for key, tensor in safetensors.torch.load_file(step_folder / record.name).items():
            label, _, start = key.rpartition("@")
            pieces.setdefault(label, {})[int(start)] = tensor.flatten()
    return {label: torch.cat([own[s] for s in sorted(own)]) for label, own in pieces.items()}


def moved(folder: Path, source: str, target: str) -> dict[str, Any]:
    """Loads a checkpoint with other workers, or into another ZeRO stage, and saves it."""
    trainer = fresh_trainer(target, perturbed=True)
    assert Checkpoints(str(folder / source), keep=1).resume(trainer, ORIGIN) is not None
    copy = folder / f"{source}-in-{target}-on-{dist.get_world_size()}"
    checkpoints = Checkpoints(str(copy), keep=1)
    checkpoints.save(trainer, state(SAVED))
    checkpoints.finish()
    losses = train(trainer, SAVED, STEPS)
    trainer.close()
    before, after = stored(folder / source), stored(copy)
    return {
        "losses": losses,
        "same names": before.keys() == after.keys(),
        "differences": [n for n, t in before.items() if not torch.equal(t, after[n])],
    }


def one_failed_writer(folder: Path) -> dict[str, Any]:
    """The second worker can write only a few bytes; the error that each worker gets."""
    trainer = fresh_trainer("zero1-fp32")
    train(trainer, 0, 1)
    checkpoints = Checkpoints(str(folder), keep=5)
    checkpoints.save(trainer, state(1))
    checkpoints.drain()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    checkpoints.save(trainer, state(2))
    problem = checkpoints.drain()
    left = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    checkpoints.save(trainer, state(3))
    checkpoints.finish()
    trainer.close()
    problems = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return {"problems": problems, "left": left, "then": sorted(p.name for p in folder.iterdir())}


def results(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if dist.get_world_size() == 2:
        for name in CASES:
            yield name, exact_of(folder / name, name)
        yield "gan", exact(folder / "gan", fresh_gan)
        yield "one failed writer", one_failed_writer(folder / "failed")
        for name, (source, target) in MOVES.items():
            yield name, moved(folder, source, target)
    elif not (folder / "one").exists():
        yield "one", exact_of(folder / "one", "zero1-ema")
    else:
        for name, (source, target) in MOVES_TO_ONE.items():
            yield name, moved(folder, source, target)


def main(folder: Path, target: Path) -> None:
    torch.set_num_threads(1)
    start_distributed(torch.device("cpu"))
    found = dict(results(folder))
    if dist.get_rank() == 0:
        target.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

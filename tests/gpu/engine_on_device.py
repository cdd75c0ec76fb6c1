"""The only worker of `test_gpu_engine`: trains on a device in every way, against torch on the CPU.

Started with the device, names of cases and the file for the results; NCCL connects it on a GPU,
gloo on a CPU.
"""

from __future__ import annotations

import gc
import json
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.distance import distance
from tests.support.networks import flat, tiny_net
from tests.support.tiny import STAGE
from training.checkpoints.tensor_files import PieceFiles, safetensors_chunks
from training.data.loader import Batch
from training.data.planned import MicroStep, Position
from training.engine.engine import Engine
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import DynamicWeighting, FlowMapObjective, FlowMapStageModel
from training.settings.objective import Guidance, SelfDistillation
from training.settings.stage import StageSettings

STEPS, MICRO_BATCHES, SAMPLES, CHANNELS = 3, 2, 4, 12
CLIPPING, WEIGHT_DECAY = 0.5, 0.01
WIDE = {"block_channels": [192, 384]}
"""A network for measuring a GPU's memory, beside which the rounding of tensors counts little."""
CASES: dict[str, dict[str, Any]] = {
    # ZeRO-3 replaces torch's linear layers, which must not affect the others: so it comes first.
    **{
        f"zero{stage}-{precision}{suffix}": {"zero_stage": stage, "precision": precision, **other}
        for stage in (3, 0, 1, 2)
        for precision in ("fp32", "bf16")
        for suffix, other in {"": {"ema_decay": 0.9}, "-offload": {"offload": "optimizer"}}.items()
        if stage or not suffix
    }
}


OBJECTIVE = SelfDistillation(time_grid_levels=3, guidance=Guidance(negative_fraction=0.4))


def settings(name: str) -> StageSettings:
    return StageSettings.model_validate(
        {
            **STAGE,
            "name": name,
            "objective": OBJECTIVE,
            "global_batch": MICRO_BATCHES * SAMPLES,
            "micro_batch": SAMPLES,
            "gradient_clipping": CLIPPING,
            "weight_decay": WEIGHT_DECAY,
            **CASES[name],
        }
    )


def fresh_model(**changes: Any) -> FlowMapStageModel:
    net: FlowMapNet = tiny_net(
        channels=CHANNELS, guidance_conditioning=True, time_embedding_scale=10.0, **changes
    )
    return FlowMapStageModel(net, DynamicWeighting())


def draw(step: int, index: int) -> tuple[Batch, torch.Generator]:
    seed = 100 * step + index
    draws = torch.Generator().manual_seed(seed)
    hq, lq, neg = torch.randn(3, SAMPLES, CHANNELS, 4, 4, generator=draws)
    micro = MicroStep(index, MICRO_BATCHES)
    batch = Batch(("",) * SAMPLES, {"hq": hq, "lq": lq, "neg": neg}, Position(), micro)
    return batch, torch.Generator().manual_seed(seed + 50)


@cache
def expected_weights() -> Tensor:
    """Those of plain torch, in fp32 on the CPU."""
    model = fresh_model()
    objective = FlowMapObjective(OBJECTIVE, perceptual_loss=None)
    rate = STAGE["learning_rate"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        optimizer.zero_grad()
        for index in range(MICRO_BATCHES):
            (objective(model, *draw(step, index)).total / MICRO_BATCHES).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
    return flat(model)


def train(engine: Engine, stage: StageSettings, device: torch.device, steps: range) -> None:
    objective = FlowMapObjective(
        stage.objective, perceptual_loss=None, gathered_parameters=engine.gathered_parameters
    )
    for step in steps:
        for index in range(MICRO_BATCHES):
            batch, generator = draw(step, index)
            batch = batch.to(device)
            engine.backward(engine(objective, batch, generator).total, batch.micro)
            engine.step(stage.learning_rate)


def masters(engine: Engine) -> Tensor:
    """All master weights in the order of the module's parameters, in host memory."""
    state = engine._state
    return torch.cat([one.within(one.owner).float().cpu() for one in state.fragments])


def is_state(engine: Engine, snapshot: dict[str, Tensor]) -> bool:
    """Whether a snapshot holds the state that the engine has now."""
    live = engine._state.snapshot(replicated=engine._zero_stage == 0)
    if live.keys() != snapshot.keys():
        return False
    exact = {
        f"{kind}/{one.name}@{one.start}": one.within(tensor).cpu()
        for one in engine._state.fragments
        for kind, tensor in engine._state._tensors(one.owner)
        if one.length
    }
    return all(torch.equal(snapshot[key], values) for key, values in exact.items())


def compare(name: str, device: torch.device) -> dict[str, Any]:
    stage, model = settings(name), fresh_model()
    start = flat(model)
    engine = Engine(model, stage, device=device, world_size=1)
    train(engine, stage, device, range(STEPS))
    found = masters(engine)
    snapshot = engine.snapshot()
    held = {key: values.clone() for key, values in snapshot.items()}
    result: dict[str, Any] = {
        "difference": distance(found - start, expected_weights() - start),
        "snapshot_is_state": is_state(engine, snapshot),
        "on_host": all(values.device.type == "cpu" for values in snapshot.values()),
        "pinned": all(values.is_pinned() for values in snapshot.values() if values.numel()),
    }
    train(engine, stage, device, range(STEPS, STEPS + 1))
    result["moved"] = not is_state(engine, snapshot)
    result["snapshot_kept"] = all(torch.equal(snapshot[key], held[key]) for key in held)
    once = masters(engine)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pieces.safetensors"
        path.write_bytes(b"".join(safetensors_chunks(snapshot)))
        engine.restore(PieceFiles({str(path): lambda: path}))
        result["restored"] = is_state(engine, held)
        train(engine, stage, device, range(STEPS, STEPS + 1))
    result["other_step_again"] = distance(masters(engine) - found, once - found)
    engine.close()
    return result


def distinct_bytes(tensors: list[Tensor], device: torch.device) -> int:
    """Of the memory behind tensors on a device, each counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if tensor.device.type == device.type
    }
    return sum(storages.values())


def live_bytes(device: torch.device) -> int:
    """What torch has given out; on a CPU what Python's tensors hold."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(device)
    tensors = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    return distinct_bytes(tensors, device)


def memory(name: str, device: torch.device) -> dict[str, int]:
    """Parameters, the bytes held between two steps, and those still held after the engine."""
    stage, before = settings(name), live_bytes(device)

    def held() -> tuple[int, int]:
        model = fresh_model(**(WIDE if device.type == "cuda" else {}))
        parameters = sum(p.numel() for p in model.parameters())
        engine = Engine(model, stage, device=device, world_size=1)
        train(engine, stage, device, range(2))
        held = live_bytes(device) - before
        engine.close()
        return parameters, held

    parameters, bytes_held = held()
    left = live_bytes(device) - before
    return {"parameters": parameters, "bytes": bytes_held, "left": left}


def main() -> None:
    device, names, path = torch.device(sys.argv[1]), sys.argv[2:-1], Path(sys.argv[-1])
    torch.set_num_threads(1)
    # First, as a GPU then also makes what stays for later: workspaces, and NCCL's memory.
    cases = {name: compare(name, device) for name in names}
    results = {
        "cases": {name: {**found, "memory": memory(name, device)} for name, found in cases.items()},
        "connection": dist.get_backend(),
    }
    path.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

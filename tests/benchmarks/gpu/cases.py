"""The trainings of `first`: every kind of stage under every way of running it, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.settings.recipe import TrainingRecipe

MODEL = {
    "block_channels": [64, 128],
    "layers_per_block": 1,
    "transformer_layers": [0, 1],
    "attention_heads": [4, 8],
    "norm_groups": 16,
    "time_channels": 64,
    "prompt_channels": 64,
    "input_gain": True,
}
STAGE: dict[str, Any] = {
    "steps": 12,
    "global_batch": 16,
    "micro_batch": 8,
    "learning_rate": 1e-4,
    "checkpoint_every_steps": 4,
}
TINY_MODEL = {
    **MODEL,
    "block_channels": [16, 32],
    "attention_heads": [2, 2],
    "norm_groups": 8,
    "time_channels": 16,
    "prompt_channels": 8,
}
TINY_STAGE = {"global_batch": 4, "micro_batch": 2}
GUIDED = {"kind": "self_distillation", "guidance": {"strength": [1.0, 1.5]}}
ADVERSARIAL = {
    "lora": {"rank": 8},
    "discriminator": {
        "channels": [64, 128],
        "strides": [2, 1, 1],
        "norm_groups": 8,
        "warmup_steps": 4,
    },
}
FP32, FP32_ON_CPU = "fp32", "fp32-on-cpu"
"""Two trainings whose losses must be the same."""
COMPARED_STAGE = "warmup"
"""Whose losses: the first stage has not yet had the time to drift apart."""


def _stage(name: str, objective: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {**STAGE, "name": name, "objective": objective, **other}


def _four_stages(**other: Any) -> list[dict[str, Any]]:
    """The method's stages; ZeRO-3 has no adversarial one."""
    pixels = {"kind": "charbonnier", "patch_size": 64}
    adversarial = {"adversarial": ADVERSARIAL, "dynamic_weighting": False}
    stages = [
        _stage("warmup", {"kind": "flow_matching"}, **other),
        _stage("distill", {"kind": "self_distillation"}, perceptual=pixels, **other),
        _stage("guidance", GUIDED, **other),
        _stage("adversarial", GUIDED, **adversarial, **other),
    ]
    return stages[: 3 if other.get("zero_stage") == 3 else 4]


def _derivatives(**other: Any) -> list[dict[str, Any]]:
    """The objectives whose targets hold a derivative of the network."""
    kinds = ("eulerian", "lagrangian")
    return [_stage(kind, {**GUIDED, "formulation": kind}, **other) for kind in kinds]


CASES: dict[str, list[dict[str, Any]]] = {
    **{f"zero{stage}": _four_stages(zero_stage=stage) for stage in range(4)},
    FP32: _four_stages(zero_stage=0, precision="fp32")[:2],
    FP32_ON_CPU: _four_stages(zero_stage=0, precision="fp32")[:1],
    "derivatives": _derivatives(gradient_checkpointing=True),
    "derivatives-fp32": _derivatives(precision="fp32"),
    "memory": _four_stages(gradient_checkpointing=True, offload="optimizer", ema_decay=0.9),
    "compiled": _four_stages(compile="student")[:3],
    "compiled-memory": _four_stages(compile="student", gradient_checkpointing=True)[:2],
    "vae": _four_stages(),
}
"""Stages by name of the case. All but `vae` train on latents of the DCT."""
NEEDS_GPU = {"compiled", "compiled-memory"}


def recipe_of(case: str, work: Path, *, tiny: bool) -> TrainingRecipe:
    small = TINY_STAGE if tiny else {}
    return TrainingRecipe.model_validate(
        {
            "manifest": str(dataset_of(case, work)),
            "output": str(work / "runs" / case),
            "seed": 3,
            "mlflow_experiment": "first",
            "model": TINY_MODEL if tiny else MODEL,
            "stages": [{**stage, **small} for stage in CASES[case]],
        }
    )


def dataset_of(case: str, work: Path) -> Path:
    return work / "datasets" / ("vae" if case == "vae" else "dct8")

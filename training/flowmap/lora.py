"""Low-rank additions (LoRA) to a network through peft: added, split from the base, merged."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from training.flowmap.network import FlowMapNet

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

ADAPTER = "default"
_NEAR = 3


def check_targets(net: FlowMapNet, targets: Sequence[str]) -> None:
    """Raises `FlowmapsrError` for a name that matches no layer, with the names near it."""
    modules = net.unet.named_modules()
    layers = [name for name, layer in modules if isinstance(layer, nn.Linear | nn.Conv2d)]
    known = sorted({_short(name) for name in layers})
    for target in targets:
        if any(name == target or name.endswith("." + target) for name in layers):
            continue
        near = difflib.get_close_matches(target, known, n=_NEAR, cutoff=0.4)
        hint = f"near it: {', '.join(near)}" if near else f"choose from {', '.join(known)}"
        raise FlowmapsrError(
            f"adversarial.lora.target_modules: {target!r} is no linear or convolutional layer of "
            f"this network; {hint}"
        )


def _short(name: str) -> str:
    """The last part of a layer's name, with the part before it where the last is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:])


def add_lora(net: FlowMapNet, *, rank: int, targets: Sequence[str]) -> None:
    """Freezes the network and adds trainable LoRA, which changes nothing at first, in place.

    Raises:
        FlowmapsrError: a target matches no layer.
    """
    check_targets(net, targets)
    net.requires_grad_(False)
    _inject(net, rank=rank, targets=targets, scale=1)


def _inject(net: FlowMapNet, *, rank: int, targets: Sequence[str], scale: float) -> LoraModel:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=list(targets))
    return LoraModel(net.unet, config, ADAPTER)


def split_weights(net: FlowMapNet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights on the CPU: those of the base, named as in a network without LoRA, and
    `<layer>.lora_A.weight` (rank, inputs, ...) and `<layer>.lora_B.weight`, if there are any."""
    base, lora = {}, {}
    for name, tensor in net.state_dict().items():
        weights = tensor.detach().cpu().contiguous()
        if ".lora_" in name:
            lora[name.replace(f".{ADAPTER}.", ".")] = weights
        else:
            base[name.replace(".base_layer.", ".")] = weights
    return base, lora


@torch.no_grad()
def merge_lora(
    net: FlowMapNet, weights: dict[str, Tensor], *, rank: int, targets: Sequence[str], scale: float
) -> None:
    """Adds `scale` times the LoRA to the layers of a plain network: W + scale * B A, in place.

    Raises:
        RuntimeError: the weights are not those of this network's LoRA.
    """
    tuner = _inject(net, rank=rank, targets=targets, scale=scale)
    named = {name.replace(".weight", f".{ADAPTER}.weight"): w for name, w in weights.items()}
    wanted = {name for name in net.state_dict() if ".lora_" in name}
    if wanted != named.keys():
        raise RuntimeError(f"LoRA of other layers: {sorted(wanted ^ named.keys())[:_NEAR]}")
    net.load_state_dict(named, strict=False)
    tuner.merge_and_unload()
    net.requires_grad_(True)

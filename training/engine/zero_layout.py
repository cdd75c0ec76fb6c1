"""Where a DeepSpeed optimiser keeps the fp32 master values of each parameter on this worker.

Turns a wrapped optimiser into `Fragment`s that look the same under ZeRO 0 to 3, with and without
bf16, on the accelerator or offloaded. What is known here of DeepSpeed's insides is known nowhere
else; it is not imported. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened parameter whose master values lie on this worker."""

    name: str
    numel: int
    """Values of the whole parameter."""
    start: int
    length: int
    owner: Tensor
    """What the optimiser updates: the parameter's own master, or one flat tensor for many."""
    owner_start: int
    """Index of the first value in the flattened owner."""

    @property
    def stop(self) -> int:
        return self.start + self.length

    def within(self, like_owner: Tensor) -> Tensor:
        """This range of a tensor laid out as the owner is, flat; a view where the owner is flat."""
        flat = like_owner.detach().reshape(-1)
        return flat[self.owner_start : self.owner_start + self.length]

    @torch.no_grad()
    def write(self, like_owner: Tensor, values: Tensor) -> None:
        """Puts flat values into this range of a tensor laid out as the owner is."""
        if self.length == like_owner.numel():
            like_owner.copy_(values.view(like_owner.shape))
        else:
            self.within(like_owner).copy_(values)


def fragments(module: nn.Module, optimizer: Any, zero_stage: int) -> tuple[Fragment, ...]:
    """The fragments of all trained parameters on this worker, in the parameters' order.

    Args:
        module: as its engine holds it, with `requires_grad` set on what is trained.
        optimizer: what `deepspeed.initialize` returned.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if zero_stage == 3:
        return tuple(_spread(name, p, optimizer) for name, p in trained.items())
    if zero_stage > 0:
        found = (_linked(name, p, optimizer) for name, p in trained.items())
        return tuple(fragment for fragment in found if fragment is not None)
    masters = _masters(optimizer)
    return tuple(
        _whole(name, masters.get(id(parameter), parameter)) for name, parameter in trained.items()
    )


def _masters(optimizer: Any) -> dict[int, Tensor]:
    """ZeRO-0: the fp32 copy of each bf16 parameter, by its identity; none in fp32."""
    if not hasattr(optimizer, "fp16_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {id(p): m for low, high in pairs for p, m in zip(low, high, strict=True)}


def _whole(name: str, master: Tensor) -> Fragment:
    return Fragment(name, master.numel(), 0, master.numel(), master, 0)


def _linked(name: str, parameter: Any, optimizer: Any) -> Fragment | None:
    """ZeRO-1 and 2: one flat tensor a worker; None where it holds nothing of the parameter."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    (owner,) = optimizer.param_groups[mapping.param_group_index]["params"]
    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Fragment(name, parameter.numel(), low.start, low.numel, owner, high.start)


def _spread(name: str, parameter: Any, optimizer: Any) -> Fragment:
    """ZeRO-3: every parameter is cut into equal parts, the last one padded."""
    group, owner_start, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    owner = optimizer.fp32_partitioned_groups_flat[group]
    numel = parameter.ds_numel
    start = min(numel, optimizer._get_param_partition_rank(parameter) * length)
    return Fragment(name, numel, start, min(length, numel - start), owner, owner_start)


def refresh_module(optimizer: Any, zero_stage: int) -> None:
    """Derives the module's parameters from the masters, exactly as a step does; all workers call
    it."""
    if zero_stage == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif zero_stage > 0:
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(low, high, strict=True):
                parameter.data.copy_(master.data)

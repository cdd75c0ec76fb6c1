"""Finds the fp32 master values of each parameter in a DeepSpeed optimizer on this worker.

Describes them as `Fragment`s that look the same under ZeRO 0 to 3, with and without bf16, on the
accelerator or offloaded. Reads private attributes of DeepSpeed's optimizers, which
tests/training/engine/test_deepspeed_patches.py checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened parameter whose master values are on this worker."""

    name: str
    numel: int
    """Number of values of the whole parameter."""
    start: int
    length: int
    owner: Tensor
    """The tensor that the optimizer updates: a master, or a flat tensor of many."""
    owner_start: int
    """Index of the first value in the flattened owner."""

    @property
    def stop(self) -> int:
        return self.start + self.length

    def within(self, like_owner: Tensor) -> Tensor:
        """This range of a tensor that is laid out like the owner; a view if that is flat."""
        flat = like_owner.detach().reshape(-1)
        return flat[self.owner_start : self.owner_start + self.length]

    @torch.no_grad()
    def write(self, like_owner: Tensor, values: Tensor) -> None:
        """Writes flat values to this range of a tensor that is laid out like the owner."""
        if self.length == like_owner.numel():
            like_owner.copy_(values.view(like_owner.shape))
        else:
            self.within(like_owner).copy_(values)


def fragments(module: nn.Module, optimizer: Any, zero_stage: int) -> tuple[Fragment, ...]:
    """The fragments of all trained parameters on this worker, in the parameters' order.

    Args:
        module: as its engine holds it, with `requires_grad` set on the trained parameters.
        optimizer: what `deepspeed.initialize` returned.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if zero_stage == 3:
        return tuple(_partitioned(name, p, optimizer) for name, p in trained.items())
    if zero_stage > 0:
        found = (_linked(name, p, optimizer) for name, p in trained.items())
        return tuple(fragment for fragment in found if fragment is not None)
    masters = _masters(optimizer)
    return tuple(
        Fragment(name, p.numel(), 0, p.numel(), masters.get(p, p), 0) for name, p in trained.items()
    )


def _masters(optimizer: Any) -> dict[Tensor, Tensor]:
    """ZeRO-0: the fp32 copy of each bf16 parameter; empty in fp32."""
    if not hasattr(optimizer, "fp16_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {p: m for low, high in pairs for p, m in zip(low, high, strict=True)}


def _linked(name: str, parameter: Any, optimizer: Any) -> Fragment | None:
    """ZeRO-1 and 2: one flat tensor per worker; None if it has nothing of the parameter."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    (owner,) = optimizer.param_groups[mapping.param_group_index]["params"]
    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Fragment(name, parameter.numel(), low.start, low.numel, owner, high.start)


def _partitioned(name: str, parameter: Any, optimizer: Any) -> Fragment:
    """ZeRO-3: every parameter is split into equal parts, the last one padded."""
    group, owner_start, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    owner = optimizer.fp32_partitioned_groups_flat[group]
    numel = parameter.ds_numel
    start = min(numel, optimizer._get_param_partition_rank(parameter) * length)
    return Fragment(name, numel, start, min(length, numel - start), owner, owner_start)


def refresh_module(optimizer: Any, zero_stage: int) -> None:
    """Updates the module's parameters from the masters; all workers must call it."""
    if zero_stage == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif zero_stage > 0:
        optimizer.update_lp_params()
    else:
        for parameter, master in _masters(optimizer).items():
            parameter.data.copy_(master.data)

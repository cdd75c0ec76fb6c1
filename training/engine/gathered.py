"""Undoes what ZeRO-3 does to a module: for a block, in which its parameters are whole, or for good.

ZeRO-3 spreads each parameter over the workers, hooks every submodule to gather and free its own,
and replaces `torch.nn.functional.linear` for the whole process.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def gathered_parameters(module: nn.Module, optimizer: Any) -> Iterator[None]:
    """Inside it the parameters are whole on this worker, and `module` is plain torch.

    Every worker must enter and leave it. It can be called inside a forward pass of the engine, but
    not of a submodule.
    """
    from deepspeed.runtime.zero import GatheredParameters

    # Prefetched parameters may still be on their way, which GatheredParameters does not wait for.
    optimizer.empty_partition_cache()
    with GatheredParameters(list(module.parameters())), _without_hooks(module), _plain_linear():
        yield


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """The hooks would free parameters after each submodule, and their autograd functions have no
    forward-mode derivative."""
    kept = [(each, each._forward_pre_hooks, each._forward_hooks) for each in module.modules()]
    for each, _, _ in kept:
        each._forward_pre_hooks, each._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for each, before, after in kept:
            each._forward_pre_hooks, each._forward_hooks = before, after


@contextmanager
def _plain_linear() -> Iterator[None]:
    """ZeRO-3's `linear` is an autograd function without a forward-mode derivative."""
    spread = nn.functional.linear
    restore_linear()
    try:
        yield
    finally:
        nn.functional.linear = spread


def restore_linear() -> None:
    """Puts torch's own `linear` back; DeepSpeed leaves its own for the rest of the process."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    nn.functional.linear = InsertPostInitMethodToModuleSubClasses.linear_bk


def forget_module(module: nn.Module) -> None:
    """Removes the module from a global list and a class's cache, where ZeRO-3 keeps each one it
    ever ran: they would hold its weights and moments for the rest of the process."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [each for each in stack if each is not module]
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(cached).nonlocals["func"].cache_clear()

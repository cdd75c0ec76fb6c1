"""Everything that replaces parts of DeepSpeed or reaches into its internals.

Each patch says why it is needed, and which test fails when DeepSpeed changes underneath it; all are
needed since 0.19, the first supported version. `zero_layout` also reads attributes of its
optimizers. tests/training/engine/test_deepspeed_patches.py checks that all these names still exist.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

CHECKED_VERSION = "0.19"
"""The minor version of DeepSpeed that this file and `zero_layout` were written against."""


def import_deepspeed() -> Any:
    """Imports DeepSpeed with less logging and without its costs at import.

    Why: on CPU, DeepSpeed compiles its shared-memory operator, which takes half a minute.
    Noticed by: test_zero.py, which is slow or has no compiler without it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon optimizer with its compile decorator replaced by a no-op.

    Why: an engine imports Muon, whose decorators load all of torch's compiler: more than a second
    at each start, for an optimizer that no stage uses.
    Noticed by: test_zero.py::test_an_engine_starts_without_torchs_compiler.
    """
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        from deepspeed.runtime.zero.muon import original_muon  # noqa: F401
    finally:
        compiler.compile = compiled


def clone_workers_group(timeout: timedelta) -> None:
    """Makes the clone of the workers' group in which DeepSpeed reduces gradients; once for all
    stages, by all workers together.

    Why: DeepSpeed makes it without a timeout, and torch's is ten minutes for NCCL, whatever that of
    the workers' group is.
    Noticed by: test_workers.py::test_all_groups_wait_longer_than_the_watchdog.
    """
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        ranks = range(dist.get_world_size())
        groups._WORLD_GROUP = dist.new_group(ranks=ranks, timeout=timeout)


@contextmanager
def gathered_parameters(module: nn.Module, optimizer: Any) -> Iterator[None]:
    """In the block, ZeRO-3's parameters are whole on this worker, and `module` is plain torch.

    Every worker must enter and leave it. It can be used inside a forward pass of the engine, but
    not of a submodule.

    Why: ZeRO-3 partitions each parameter, hooks every submodule to gather and free its parameters,
    and replaces `torch.nn.functional.linear` for the whole process.
    Noticed by: test_zero.py::test_zero_3_differentiates_as_zero_0_does.
    """
    from deepspeed.runtime.zero import GatheredParameters

    # GatheredParameters does not wait for parameters that are still being prefetched.
    optimizer.empty_partition_cache()
    with GatheredParameters(list(module.parameters())), _without_hooks(module), _plain_linear():
        yield


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Disables ZeRO-3's hooks: they would free parameters after each submodule, and their autograd
    functions have no forward-mode derivative."""
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
    """Restores torch's `linear`: ZeRO-3's has no forward-mode derivative."""
    partitioned = nn.functional.linear
    restore_linear()
    try:
        yield
    finally:
        nn.functional.linear = partitioned


def restore_linear() -> None:
    """Puts torch's `linear` back.

    Why: DeepSpeed leaves its replacement in `torch.nn.functional` for the rest of the process.
    Noticed by: test_deepspeed_patches.py, which looks for `linear_bk`.
    """
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    nn.functional.linear = InsertPostInitMethodToModuleSubClasses.linear_bk


def forget_module(module: nn.Module) -> None:
    """Removes the module from a global list and from the cache of a private method.

    Why: ZeRO-3 keeps each module it ever ran there, and with it the weights and moments, for the
    rest of the process. The cache is behind a decorator, so only its closure leads to it.
    Noticed by: test_exact_resume.py::test_a_closed_trainer_leaves_no_tensor_behind.
    """
    from deepspeed.runtime.zero import parameter_offload

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [each for each in stack if each is not module]
    params_to_release_cache().cache_clear()


def params_to_release_cache() -> Any:
    """The cached function behind the coordinator's private `__params_to_release`."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    method = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    return inspect.getclosurevars(method).nonlocals["func"]


def drop_dry_run_step(optimizer: Any) -> None:
    """Undoes the step that DeepSpeed's bf16 optimizer takes when ZeRO-0 builds it.

    Why: that step has zero gradients, but counts in AdamW's bias correction.
    Noticed by: test_zero.py::test_an_engine_has_taken_no_step_when_it_is_built.
    """
    if hasattr(optimizer, "fp16_groups"):
        optimizer.refresh_fp32_params()
        optimizer.state.clear()

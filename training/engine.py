"""The one file that knows DeepSpeed: a module and its settings to an engine that steps, saves and
loads."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from training.schedule import MicroStep
from training.settings import StageSettings


def deepspeed_config(settings: StageSettings, *, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration that a stage amounts to (also an artifact of the run).

    It has room for one batch size, the one with the most accumulation; each step may have its own.
    """
    size = max(settings.batch_sizes, key=lambda one: one.accumulation(world_size))
    return {
        "train_micro_batch_size_per_gpu": size.micro_batch,
        "gradient_accumulation_steps": size.accumulation(world_size),
        # DeepSpeed clips at 1.0 when this is absent.
        "gradient_clipping": settings.gradient_clipping,
        "zero_optimization": {"stage": settings.zero_stage},
        "bf16": {"enabled": settings.precision == "bf16"},
        # ZeRO refuses torch's own AdamW without it; the compiled one would need a compiler at run
        # time.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _import_deepspeed() -> Any:
    """deepspeed, quiet, and on CPU without the shared-memory operator it would compile for half a
    minute."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def start_distributed(device: torch.device) -> None:
    """Joins the workers of the launcher; a no-op when this one has joined."""
    _import_deepspeed().init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False
    )


class Engine:
    """A DeepSpeed engine around `module`, whose forward gets whatever this is called with."""

    def __init__(
        self, module: nn.Module, settings: StageSettings, *, device: torch.device, world_size: int
    ) -> None:
        start_distributed(device)
        deepspeed = _import_deepspeed()
        config = deepspeed_config(settings, world_size=world_size)
        optimizer = torch.optim.AdamW(
            (p for p in module.parameters() if p.requires_grad),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module.to(device), optimizer=optimizer, config=config
        )
        self._partly_frozen = not all(p.requires_grad for p in module.parameters())
        self._zero_stage = settings.zero_stage
        # DeepSpeed measures the norm everywhere but there.
        self._measures_norm = settings.zero_stage == 0 and settings.precision == "fp32"
        self._norm = 0.0

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

    def backward(self, loss: Tensor, micro: MicroStep) -> None:
        """Accumulates the gradients of one of a step's micro batches, for the mean over all.

        DeepSpeed is told where a step ends: its own count knows one number of micro batches only.
        """
        self._engine.set_gradient_accumulation_boundary(micro.is_last)
        self._engine.backward(loss * micro.weight / micro.count, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Ends a micro batch; the last one of a step clips and updates at `learning_rate`."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._measures_norm and self._engine.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()

    @property
    def gradient_norm(self) -> float:
        """Norm of the last update's gradient before clipping; 0 before the first, never negative.

        Not finite when the gradient was not, whatever DeepSpeed then did to the weights.
        """
        if self._measures_norm:
            return self._norm
        norm = float(self._engine.get_global_grad_norm() or 0.0)
        return norm if norm >= 0 else float("inf")  # DeepSpeed also writes -1 for infinity

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside it the parameters of a part of `module` are whole on this worker, to be read.

        Every worker must enter and leave it: under ZeRO-3 they lie spread over all.
        """
        if self._zero_stage < 3:
            return nullcontext()
        context: AbstractContextManager[None] = _import_deepspeed().zero.GatheredParameters(
            list(module.parameters())
        )
        return context

    def save(self, folder: Path) -> None:
        """Writes this worker's part of the state below `folder`; every worker must call it.

        Frozen parameters are left out: they are where they came from.
        """
        self._engine.save_checkpoint(
            str(folder.parent),
            tag=folder.name,
            save_latest=False,
            exclude_frozen_parameters=self._partly_frozen,
        )

    def load(self, folder: Path) -> None:
        """Restores module and optimiser from what `save` wrote; every worker must call it."""
        loaded, _ = self._engine.load_checkpoint(
            str(folder.parent), tag=folder.name, load_module_strict=not self._partly_frozen
        )
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")

"""Wraps a module and a stage's settings in a DeepSpeed engine that trains, saves and restores it.

`deepspeed_patches` and `zero_layout` contain what depends on DeepSpeed's internals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.checkpoints.tensor_files import PieceFiles
from training.data.planned import MicroStep
from training.engine.deepspeed_patches import (
    clone_workers_group,
    drop_dry_run_step,
    forget_module,
    gathered_parameters,
    import_deepspeed,
    restore_linear,
)
from training.engine.state import EngineState
from training.engine.zero_layout import fragments, refresh_module
from training.network import stay_on_this_machine
from training.settings.stage import StageSettings


def deepspeed_config(settings: StageSettings, *, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a stage (also an artifact of the run).

    It can contain only one batch size: the one with the most accumulation. `backward` handles the
    others.
    """
    size = max(settings.batch_sizes, key=lambda one: one.accumulation(world_size))
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if settings.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": size.micro_batch,
        "gradient_accumulation_steps": size.accumulation(world_size),
        # DeepSpeed clips at 1.0 when this is absent.
        "gradient_clipping": settings.gradient_clipping,
        "zero_optimization": zero,
        # `gradient_norm` tells of gradients that are not finite; DeepSpeed's own check reads all of
        # them once more and waits for the GPU.
        "bf16": {"enabled": settings.precision == "bf16", "check_grad_overflow": False},
        # ZeRO rejects torch's AdamW without it; DeepSpeed's would need a compiler at run time.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        # It would synchronize with the GPU twice in every micro step; `Meter` measures speed.
        "timers": {"throughput": {"enabled": False}},
    }


def start_distributed(device: torch.device, *, timeout: timedelta = timedelta(0)) -> None:
    """Joins the launcher's process group; does nothing if this worker has joined already.

    Args:
        timeout: of the workers' waiting for each other, if it is longer than DeepSpeed's ten
            minutes (or `DEEPSPEED_TIMEOUT`).
    """
    deepspeed = import_deepspeed()
    timeout = max(timeout, deepspeed.constants.default_pg_timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        stay_on_this_machine()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout)
    clone_workers_group(timeout)


class Engine:
    """A DeepSpeed engine around `module`, whose forward receives the arguments of a call."""

    def __init__(
        self, module: nn.Module, settings: StageSettings, *, device: torch.device, world_size: int
    ) -> None:
        start_distributed(device)
        deepspeed = import_deepspeed()
        # cuDNN's default rounds the inputs of fp32 convolutions to TF32's 10 bits, which
        # loses small differences of the network; and MFU is relative to the peak of fp32.
        torch.backends.cudnn.allow_tf32 = settings.precision != "fp32"
        config = deepspeed_config(settings, world_size=world_size)
        optimizer = torch.optim.AdamW(
            (p for p in module.parameters() if p.requires_grad),
            lr=0.0,  # `step` sets it
            weight_decay=settings.weight_decay,
            # One pass over memory, the GPU's or the host's, instead of several.
            fused=device.type == "cuda" or settings.offload == "optimizer",
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module.to(device), optimizer=optimizer, config=config
        )
        drop_dry_run_step(self._optimizer)
        parts = fragments(self.module, self._optimizer, settings.zero_stage)
        decay, warmup = settings.ema_decay, settings.ema_warmup
        self._state = EngineState(self.module, optimizer, parts, decay=decay, warmup=warmup)
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
        """Accumulates the gradients of one micro batch, for the mean over all of the step.

        Sets where a step ends: DeepSpeed's own count assumes the same number of micro batches in
        every step.
        """
        self._engine.set_gradient_accumulation_boundary(micro.is_last)
        self._engine.backward(loss * micro.weight / micro.count, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Ends a micro batch; the last one of a step clips and updates at `learning_rate`."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        updates = self._engine.is_gradient_accumulation_boundary()
        if self._measures_norm and updates:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()
        if updates:
            self._state.update_averages()

    @property
    def gradient_norm(self) -> float:
        """Norm of the last update's gradient before clipping; 0 before the first, never negative.

        Not finite when the gradient was not, whatever DeepSpeed then did to the weights.
        """
        if self._measures_norm:
            return self._norm
        norm = float(self._engine.get_global_grad_norm() or 0.0)
        return norm if norm >= 0 else float("inf")  # DeepSpeed also writes -1 for infinity

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """In the block, the module's parameters are whole on this worker, as in plain torch.

        Every worker must enter and leave it: ZeRO-3 partitions the parameters.
        """
        if self._zero_stage < 3:
            return nullcontext()
        return gathered_parameters(self.module, self._optimizer)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block, the module uses the averages of its weights, if there are any.

        Every worker must enter and leave it; the weights are restored exactly afterwards.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        if self._state.averages:
            self._state.swap_averages()
            refresh_module(self._optimizer, self._zero_stage)

    def snapshot(self) -> dict[str, Tensor]:
        """This worker's share of the trained state, in host memory.

        Frozen parameters are left out: they are loaded from their source again.
        """
        return self._state.snapshot(replicated=self._zero_stage == 0)

    def restore(self, saved: PieceFiles) -> None:
        """Restores the snapshots of all workers, for any number of workers and ZeRO stage; every
        worker must call it.

        Raises:
            FlowmapsrError: the state belongs to another network.
        """
        self._state.restore(saved)
        refresh_module(self._optimizer, self._zero_stage)

    def close(self) -> None:
        """Removes DeepSpeed's hooks and references, so that the module's memory can be freed."""
        self._engine.destroy()
        if self._zero_stage == 3:
            forget_module(self.module)
            restore_linear()

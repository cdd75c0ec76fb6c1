"""An engine's trained state (masters, their average, AdamW's moments), copied to the host and back.

The format does not depend on the number of workers or the ZeRO stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.checkpoints.tensor_files import BUFFER, STEP, PieceFiles, key
from training.engine.zero_layout import Fragment

MASTER = "master"
AVERAGE = "average"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names for its moments."""


def ema_decay(update: int, decay: float, warmup: int | None) -> float:
    """Decay of the average at an update, counted from 1: decay (1 - exp(-update / warmup)), so that
    the first weights are soon forgotten; `decay` at all of them without a warm-up."""
    return decay if warmup is None else decay * (1 - math.exp(-update / warmup))


class EngineState:
    """The state that a checkpoint saves and restores, and the average of the masters.

    The average works on the tensors that the optimizer updates, on their device: whole ones or a
    worker's flat partition (ZeRO), so workers need not communicate; `decay` None keeps none.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.AdamW,
        fragments: tuple[Fragment, ...],
        *,
        decay: float | None,
        warmup: int | None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.fragments = fragments
        self._decay, self._warmup = decay or 0.0, warmup
        self._updates = 0
        owners = () if decay is None else dict.fromkeys(one.owner for one in fragments)
        self.averages = {owner: owner.detach().clone() for owner in owners}
        """fp32, by their masters; initially their values."""

    @torch.no_grad()
    def update_averages(self) -> None:
        """a <- decay * a + (1 - decay) * w after every update of the masters w."""
        self._updates += 1
        decay = ema_decay(self._updates, self._decay, self._warmup)
        for master, average in self.averages.items():
            average.lerp_(master.detach(), 1 - decay)

    @torch.no_grad()
    def swap_averages(self) -> None:
        """Exchanges masters and averages; a second call restores both exactly."""
        for master, average in self.averages.items():
            kept = master.detach().clone()
            master.copy_(average)
            average.copy_(kept)

    def snapshot(self, *, replicated: bool) -> dict[str, Tensor]:
        """This worker's share by key, copied to host memory.

        Args:
            replicated: all workers hold the same state (ZeRO-0), instead of a partition each.
        """
        rank, world_size = dist.get_rank(), dist.get_world_size()
        copied = cache(_host_copy)  # many fragments share one tensor
        share: dict[str, Tensor] = {}
        for fragment in self.fragments[rank::world_size] if replicated else self.fragments:
            if not fragment.length:
                continue
            for kind, tensor in self._tensors(fragment.owner):
                values = fragment.within(copied(tensor))
                share[key(kind, fragment.name, fragment.start)] = values
            if fragment.owner in self.optimizer.state:
                step = self.optimizer.state[fragment.owner]["step"]
                share[key(STEP, fragment.name, 0)] = copied(step).view(1)
        if rank == 0:
            for name, buffer in _stored_buffers(self.module):
                share[key(BUFFER, name, 0)] = copied(buffer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return share

    def restore(self, saved: PieceFiles) -> None:
        """Restores this worker's part of the state that all workers saved."""
        by_owner: dict[Tensor, list[Fragment]] = {}
        for fragment in self.fragments:
            by_owner.setdefault(fragment.owner, []).append(fragment)
        for group in by_owner.values():
            self._restore_step(group, saved)
            for fragment in group:
                self._restore_values(fragment, saved)
        for name, buffer in _stored_buffers(self.module):
            buffer.copy_(saved.whole(BUFFER, name))
        self._updates = max(self._saved_steps(self.fragments, saved), default=0)

    def _restore_step(self, group: list[Fragment], saved: PieceFiles) -> None:
        """Restores the step count of one of the optimizer's tensors and sets its moments to zero.

        ZeRO-0 has a count for each parameter, and no moments for one that never had a gradient. A
        flat tensor has a single count: the maximum over its parameters.
        """
        owner = group[0].owner
        self.optimizer.state.pop(owner, None)
        steps = self._saved_steps(group, saved)
        if not steps:
            return
        # On the device where torch's AdamW keeps the count.
        device = owner.device if self.optimizer.defaults["fused"] else torch.device("cpu")
        state = self.optimizer.state[owner]
        state["step"] = torch.tensor(max(steps), dtype=torch.float32, device=device)
        for name in MOMENTS:
            state[name] = torch.zeros_like(owner, requires_grad=False)

    @staticmethod
    def _saved_steps(group: Sequence[Fragment], saved: PieceFiles) -> list[int]:
        """The optimizer's counts of updates; there is none of what never had a gradient."""
        return [int(saved.number(STEP, f.name)) for f in group if saved.has(STEP, f.name)]

    def _restore_values(self, fragment: Fragment, saved: PieceFiles) -> None:
        for kind, tensor in self._tensors(fragment.owner):
            if kind in MOMENTS and not saved.has(kind, fragment.name):
                continue
            start, stop, numel = fragment.start, fragment.stop, fragment.numel
            values = saved.read(kind, fragment.name, start=start, stop=stop, numel=numel)
            fragment.write(tensor, values)

    def _tensors(self, owner: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The state of one of the optimizer's tensors by kind, all in the same layout."""
        yield MASTER, owner
        if owner in self.optimizer.state:
            for name in MOMENTS:
                yield name, self.optimizer.state[owner][name]
        if owner in self.averages:
            yield AVERAGE, self.averages[owner]


def _host_copy(tensor: Tensor) -> Tensor:
    """The copy, which may be incomplete until the GPU is synchronized."""
    pinned = tensor.is_cuda  # as fast as the bus; torch keeps the memory for the next time
    copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned, requires_grad=False)
    return copy.copy_(tensor.detach(), non_blocking=pinned)


def _stored_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The persistent buffers of a module by their full names."""
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer

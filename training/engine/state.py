"""Copies an engine's trained state (masters, their average, AdamW's moments) to the host and back.

The format does not depend on the number of workers or the ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from training.checkpoints.tensor_files import BUFFER, STEP, PieceFiles, key
from training.engine.ema import ExponentialMovingAverage
from training.engine.zero_layout import Fragment

MASTER = "master"
AVERAGE = "average"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names for its moments."""


class EngineState:
    """The state that a checkpoint saves and restores."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.AdamW,
        fragments: tuple[Fragment, ...],
        average: ExponentialMovingAverage | None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.fragments = fragments
        self.average = average

    def snapshot(self, *, index: int, of: int, with_buffers: bool) -> dict[str, Tensor]:
        """This worker's share by key, copied to host memory.

        Args:
            index, of: which part to take if all workers hold the same state (ZeRO-0); 0 and 1 if
                each worker has its own partition.
            with_buffers: whether to include the module's buffers, which all workers hold.
        """
        copies = _HostCopies()
        share: dict[str, Tensor] = {}
        for fragment in self.fragments[index::of]:
            if not fragment.length:
                continue
            for kind, tensor in self._tensors(fragment.owner):
                values = fragment.within(copies.of(tensor))
                share[key(kind, fragment.name, fragment.start)] = values
            if fragment.owner in self.optimizer.state:
                step = self.optimizer.state[fragment.owner]["step"]
                share[key(STEP, fragment.name, 0)] = copies.of(step).view(1)
        if with_buffers:
            for name, buffer in _stored_buffers(self.module):
                share[key(BUFFER, name, 0)] = copies.of(buffer)
        copies.wait()
        return share

    def restore(self, saved: PieceFiles) -> None:
        """Restores this worker's part of the state that all workers saved.

        Raises:
            FlowmapsrError: the state belongs to another network.
        """
        by_owner: dict[int, list[Fragment]] = {}
        for fragment in self.fragments:
            by_owner.setdefault(id(fragment.owner), []).append(fragment)
        for group in by_owner.values():
            self._restore_step(group, saved)
            for fragment in group:
                self._restore_values(fragment, saved)
        for name, buffer in _stored_buffers(self.module):
            buffer.copy_(saved.whole(BUFFER, name))

    def _restore_step(self, group: list[Fragment], saved: PieceFiles) -> None:
        """Restores the step count of one of the optimizer's tensors and sets its moments to zero.

        ZeRO-0 has a count for each parameter, and no moments for one that never had a gradient. A
        flat tensor has a single count: the maximum over its parameters.
        """
        owner = group[0].owner
        self.optimizer.state.pop(owner, None)
        steps = [saved.number(STEP, f.name) for f in group if saved.has(STEP, f.name)]
        if not steps:
            return
        # On the device where torch's AdamW keeps the count.
        device = owner.device if self.optimizer.defaults["fused"] else torch.device("cpu")
        state = self.optimizer.state[owner]
        state["step"] = torch.tensor(max(steps), dtype=torch.float32, device=device)
        for name in MOMENTS:
            state[name] = torch.zeros_like(owner, requires_grad=False)

    def _restore_values(self, fragment: Fragment, saved: PieceFiles) -> None:
        for kind, tensor in self._tensors(fragment.owner):
            if kind in MOMENTS and not saved.has(kind, fragment.name):
                continue
            values = saved.read(
                kind,
                fragment.name,
                start=fragment.start,
                stop=fragment.stop,
                numel=fragment.numel,
            )
            fragment.write(tensor, values)

    def _tensors(self, owner: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The state of one of the optimizer's tensors by kind, all in the same layout."""
        yield MASTER, owner
        if owner in self.optimizer.state:
            for name in MOMENTS:
                yield name, self.optimizer.state[owner][name]
        if self.average is not None:
            yield AVERAGE, self.average.of(owner)


class _HostCopies:
    """Copies each tensor to host memory once: many fragments share one."""

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The copy, which may be incomplete until `wait`."""
        if id(tensor) not in self._copies:
            pinned = tensor.is_cuda  # as fast as the bus; torch keeps the memory for the next time
            copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned, requires_grad=False)
            self._copies[id(tensor)] = copy.copy_(tensor.detach(), non_blocking=pinned)
        return self._copies[id(tensor)]

    def wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _stored_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The persistent buffers of a module by their full names."""
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer

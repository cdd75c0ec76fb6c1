"""How much memory a network's pass takes, and how much there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_SPARE = 1.3
"""Measured peak over what tensors hold, on a CPU: its kernels have buffers of their own."""


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside the block hold at once, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._add(one.untyped_storage() for one in tree_leaves(out) if isinstance(one, Tensor))
        self.peak = max(self.peak, self._held)
        return out

    def _add(self, storages: Iterable[torch.UntypedStorage]) -> None:
        for storage in storages:
            if storage not in self._known:
                self._known.add(storage)
                self._held += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self._held -= size


class MemoryModel:
    """Peak memory of a pass as a line over the places of its input, from two small passes."""

    def __init__(self, fn: Callable[[Tensor], Tensor], small: Tensor, large: Tensor) -> None:
        """
        Args:
            small, large: two inputs (B, C, H, W) that differ in height or width.
        """
        first, second = self._peak(fn, small), self._peak(fn, large)
        count = small[0, 0].numel()
        self.per_place = _SPARE * max(1, second - first) / (large[0, 0].numel() - count)
        self.fixed = max(0.0, _SPARE * first - self.per_place * count)

    def places(self, budget: float) -> int:
        """The most places (height x width of an input) whose pass fits into `budget` bytes."""
        return max(0, int((budget - self.fixed) / self.per_place))

    def bytes(self, places: int) -> float:
        """What a pass over so many places takes."""
        return self.fixed + self.per_place * places

    @staticmethod
    def _peak(fn: Callable[[Tensor], Tensor], x: Tensor) -> int:
        x = x.clone()  # a view would hold all that it is a view of
        with PeakBytes() as measured:
            fn(x)
        return measured.peak


def foretold_bytes(
    fn: Callable[[Tensor], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> float:
    """What a pass over an input of that shape takes, for which nothing is computed."""
    with (
        _disable_current_modes(),  # such as a count of FLOPs, of which there are none
        FakeTensorMode(allow_non_fake_inputs=True),
        PeakBytes() as measured,
    ):
        fn(torch.empty(*shape, dtype=dtype, device=device))
    return _SPARE * measured.peak


def used_bytes(device: torch.device) -> int:
    """What this process holds on the device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def free_bytes(device: torch.device) -> int:
    """What this process may still take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full."""
    # torch's CPU allocator says so only in the text of a RuntimeError.
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)

"""Floating-point operations of whatever runs inside a block, counted one kernel at a time.

The formulas are those of `torch.utils.flop_counter`: a multiplication and an addition are two, and
only matrix products, convolutions and attention count. Knows no network and changes no number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop,
    sdpa_flop,
)

Formula = Callable[..., int]

_aten = torch.ops.aten
FORMULAS: dict[Any, Formula] = {
    # torch knows them for the attention kernels of GPUs only; those of CPUs take the same shapes.
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    **flop_registry,
}


class FlopCounter(TorchDispatchMode):
    """Counts in `flops` what the model itself costs, forward and backward.

    What gradient checkpointing computes a second time is left out: it is the price of memory, and
    would make a slower setting look busier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None and not _computes_again():
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


@contextmanager
def counted_flops(*, compiled: bool) -> Iterator[FlopCounter]:
    """Counts what runs inside the block.

    Args:
        compiled: whether a part of it goes through `torch.compile`; that must have run before.
    """
    with ExitStack() as stack:
        if compiled:
            # torch would give up compiling for good what it first meets while being counted.
            stack.enter_context(torch.compiler.set_stance("eager_on_recompile"))
        yield stack.enter_context(FlopCounter())


def _computes_again() -> bool:
    """Whether this is a forward pass inside a backward pass: only it records gradients there."""
    if torch._C._current_graph_task_id() == -1:
        return False
    return torch.is_grad_enabled() or _inside_checkpointing()


def _inside_checkpointing() -> bool:
    """Whether torch's checkpointing called, however deep: an `autograd.Function`, as ZeRO-3 makes
    of a linear layer, turns gradients off for its own forward pass."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "unpack_hook" and code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False

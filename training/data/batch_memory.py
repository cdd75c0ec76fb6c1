"""The memory of batches: that of batches which nobody holds any more serves the next ones.

The system hands out new memory as zeros, and writing these costs a tenth of what degrading the
pixels that are then written over them does (tests/benchmarks/RESULTS.md).
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

_LARGE = 2**20
"""Bytes; smaller pieces are not given back to the system between two batches anyway."""
_WAITING = 8
"""Pieces kept at most, of the batches freed last."""
_NUMPY = {torch.float16: np.float16, torch.float32: np.float32, torch.uint8: np.uint8}


class BatchMemory:
    """Thread-safe."""

    def __init__(self, *, pin: bool = False) -> None:
        """
        Args:
            pin: use page-locked memory, from which copies to a GPU run in the background; torch
                itself uses that again.
        """
        self._pin = pin
        self._free: deque[np.ndarray] = deque(maxlen=_WAITING)

    def empty(self, *size: int, dtype: torch.dtype) -> Tensor:
        """A tensor with any content, whose memory is its own as long as it or a view lives."""
        if self._pin:
            return torch.empty(size, dtype=dtype, pin_memory=True)
        piece = self._piece(math.prod(size) * dtype.itemsize)
        lent = np.ndarray(size, _NUMPY[dtype], buffer=piece)
        if piece.nbytes >= _LARGE:
            # The tensor and all views of it hold `lent`; nothing else does.
            weakref.finalize(lent, self._free.append, piece)
        return torch.from_numpy(lent)

    def _piece(self, size: int) -> np.ndarray:
        """Bytes that nobody uses."""
        for _ in range(len(self._free)):
            try:
                piece = self._free.popleft()
            except IndexError:  # another thread was faster
                break
            if piece.nbytes == size:
                return piece
            self._free.append(piece)
        return np.empty(size, np.uint8)

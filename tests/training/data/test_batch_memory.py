"""The memory of a batch is used again once nobody holds it, and never before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from training.data.batch_memory import BatchMemory

SIZE = (2, 512, 512, 3)


def _new(memory: BatchMemory) -> torch.Tensor:
    return memory.empty(*SIZE, dtype=torch.float32)


def test_memory_that_nobody_holds_is_used_again() -> None:
    memory = BatchMemory()
    first = _new(memory)
    place = first.data_ptr()
    other = _new(memory)
    assert other.data_ptr() != place
    del first
    assert memory.empty(2, 512, 512, 2, dtype=torch.float32).data_ptr() != place, "another size"
    again = memory.empty(2, 512, 512, 6, dtype=torch.float16)
    assert again.data_ptr() == place and again.shape == (2, 512, 512, 6)


def test_memory_is_not_used_again_while_any_view_of_it_lives() -> None:
    memory = BatchMemory()
    views: list[torch.Tensor | np.ndarray] = [
        _new(memory).fill_(7).permute(0, 3, 1, 2)[1:, 0],
        _new(memory).fill_(7)[0].numpy()[3:],
        _new(memory).fill_(7).numpy(),
        _new(memory).fill_(7).detach(),
    ]
    others = [_new(memory).fill_(0) for _ in range(8)]
    assert all(bool((view == 7).all()) for view in views)
    del others
    assert all(bool((_new(memory).fill_(0) == 0).all()) for _ in range(8))
    assert all(bool((view == 7).all()) for view in views)


def test_threads_never_get_the_same_memory() -> None:
    memory = BatchMemory()

    def work(mark: int) -> bool:
        for _ in range(50):
            mine = _new(memory).fill_(mark)
            if not bool((mine == mark).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))

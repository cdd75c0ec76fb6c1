"""Tiles on their way between the memory of the CPU and that of a CUDA device.

Pinned memory is copied at the full speed of the bus, and beside work on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def ahead(tiles: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Tiles in the memory of the CPU, on a CUDA device: each is copied while the one before is
    worked on. For another device, the tiles as they are."""
    if device.type != "cuda":
        yield from tiles
        return
    stream, before = torch.cuda.Stream(device), None
    for tile in tiles:
        upcoming = _sent(tile, device, stream)  # on its way before the one before is given
        if before is not None:
            yield _arrived(*before)
        before = upcoming
    if before is not None:
        yield _arrived(*before)


def to_host(x: Tensor) -> Tensor:
    """A copy in the memory of the CPU, or x where it is there."""
    if x.device.type != "cuda":
        return x.cpu()
    copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    copy.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return copy


def _sent(
    tile: Tensor, device: torch.device, stream: torch.cuda.Stream
) -> tuple[Tensor, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        copy = tile.pin_memory().to(device, non_blocking=True)
        return copy, stream.record_event()


def _arrived(copy: Tensor, event: torch.cuda.Event) -> Tensor:
    current = torch.cuda.current_stream(copy.device)
    current.wait_event(event)
    copy.record_stream(current)
    return copy

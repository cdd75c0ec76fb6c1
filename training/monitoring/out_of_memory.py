"""What a user is told when a GPU's memory is full: with what, and which settings make it less.

Knows no network; without this Ray would restart the workers, into the same wall.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from datagen.errors import FlowmapsrError
from training.data.loader import Batch
from training.settings.stage import StageSettings


@contextmanager
def memory_explained(settings: StageSettings, batch: Batch | None = None) -> Iterator[None]:
    """The block is a micro step on `batch`; without one it builds network and optimiser.

    Raises:
        FlowmapsrError: the GPU's memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        room = "network and optimiser" if batch is None else _named(batch)
        raise FlowmapsrError(
            f"stage {settings.name!r}: the GPU has no room for {room}. "
            f"{_remedies(settings, batch)}. Torch says: {error}"
        ) from error


def _named(batch: Batch) -> str:
    height, width = batch.hq.shape[2:]
    samples = "1 sample" if len(batch.keys) == 1 else f"{len(batch.keys)} samples"
    return f"a micro batch of {samples} with latents of {height}x{width}"


def _remedies(settings: StageSettings, batch: Batch | None) -> str:
    going_on = []
    if batch is not None and not settings.gradient_checkpointing:
        going_on.append("gradient_checkpointing=true")
    if settings.offload == "none":
        going_on.append("offload=optimizer")
    if settings.zero_stage < 3:
        going_on.append(f"with several workers a zero_stage above {settings.zero_stage}")
    remedies = []
    if going_on:
        remedies.append(
            f"Give the same command stages.{settings.name}.{', or '.join(going_on)}, and it goes on"
        )
    if batch is not None and len(batch.keys) > 1:
        whose = " of this pixel budget" if settings.budgets else ""
        remedies.append(f"A lower micro_batch{whose} needs a new output")
    return ". ".join(remedies or ["It needs a GPU with more memory, or a smaller model"])

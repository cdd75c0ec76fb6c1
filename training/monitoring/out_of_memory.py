"""Explains out-of-memory errors: what was in use, which settings reduce it.

A `FlowmapsrError` also keeps Ray from restarting the workers, which would run out of memory again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from datagen.errors import FlowmapsrError
from training.data.loader import Batch
from training.settings.stage import StageSettings


@contextmanager
def explain_out_of_memory(settings: StageSettings, batch: Batch | None = None) -> Iterator[None]:
    """The block is a micro step on `batch`; without one it builds network and optimizer.

    Raises:
        FlowmapsrError: the GPU's memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        subject = "network and optimizer" if batch is None else _describe(batch)
        raise FlowmapsrError(
            f"stage {settings.name!r}: the GPU's memory is too small for {subject}. "
            f"{_remedies(settings, batch)}. PyTorch reports: {error}"
        ) from error


def _describe(batch: Batch) -> str:
    height, width = batch.hq.shape[2:]
    samples = "1 sample" if len(batch.keys) == 1 else f"{len(batch.keys)} samples"
    return f"a micro batch of {samples} with latents of {height}x{width}"


def _remedies(settings: StageSettings, batch: Batch | None) -> str:
    changes = []
    if batch is not None and not settings.gradient_checkpointing:
        changes.append("gradient_checkpointing=true")
    if settings.offload == "none":
        changes.append("offload=optimizer")
    if settings.zero_stage < 3:
        changes.append(f"with several workers a zero_stage above {settings.zero_stage}")
    remedies = []
    if changes:
        options = f"stages.{settings.name}.{', or '.join(changes)}"
        remedies.append(f"To continue, repeat the command with {options}")
    if batch is not None and len(batch.keys) > 1:
        which = " for this pixel budget" if settings.budgets else ""
        remedies.append(f"A lower micro_batch{which} needs a new output")
    return ". ".join(remedies or ["Use a GPU with more memory, or a smaller model"])

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
    what, (height, width) = batch.size
    samples = "1 sample" if len(batch.keys) == 1 else f"{len(batch.keys)} samples"
    return f"a micro batch of {samples} with {what} of {height}x{width}"


def _remedies(settings: StageSettings, batch: Batch | None) -> str:
    own = f"stages.{settings.name}"
    changes = []
    if batch is not None and len(batch.keys) > 1:
        which = " for this pixel budget" if settings.budgets else ""
        changes.append(f"a lower {own}.micro_batch{which}")
    if batch is not None and not settings.gradient_checkpointing:
        changes.append(f"{own}.gradient_checkpointing=true")
    if settings.offload == "none":
        changes.append(f"{own}.offload=optimizer")
    if settings.zero_stage < 3:
        changes.append(f"with several workers a {own}.zero_stage above {settings.zero_stage}")
    if not changes:
        return "Use a GPU with more memory, or a smaller model"
    return f"To continue, repeat the command with {', or '.join(changes)}"

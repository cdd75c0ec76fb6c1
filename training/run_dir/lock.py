"""Keeps every place that a run writes to for one training at a time: its folder, and that of its
checkpoints where they lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from datagen.io.lock import TRAINING, OutputLock, output_lock
from training.settings.recipe import TrainingRecipe


class RunLock:
    """The locks of a run, held."""

    def __init__(self, locks: Sequence[OutputLock]) -> None:
        self.locks = locks

    def raise_if_lost(self) -> None:
        """Raises LockLostError once another training has taken one of the folders."""
        for lock in self.locks:
            lock.raise_if_lost()


@contextmanager
def run_lock(recipe: TrainingRecipe, *, take_over: bool = False) -> Iterator[RunLock]:
    """Holds the places of a run for the block; see `output_lock`."""
    places = dict.fromkeys([recipe.output, recipe.checkpoints or recipe.output])
    with ExitStack() as stack:
        locks = [
            stack.enter_context(output_lock(place, TRAINING, take_over=take_over))
            for place in places
        ]
        yield RunLock(locks)

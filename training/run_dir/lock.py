"""Locks a run's folder, and its checkpoints' prefix if that is elsewhere, for one training."""

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
    """Holds the locks of a run for the block; see `output_lock`."""
    locations = dict.fromkeys([recipe.output, recipe.checkpoints or recipe.output])
    with ExitStack() as stack:
        locks = [
            stack.enter_context(output_lock(location, TRAINING, take_over=take_over))
            for location in locations
        ]
        yield RunLock(locks)

"""Locks a run's folder, and its checkpoints' prefix if that is elsewhere, for one training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from datagen.io.lock import TRAINING, OutputLock, output_lock
from training.settings.recipe import TrainingRecipe


class RunLock(NamedTuple):
    """The locks of a run, held."""

    locks: list[OutputLock]

    def raise_if_lost(self) -> None:
        """Raises LockLostError once another training has taken one of the folders."""
        for lock in self.locks:
            lock.raise_if_lost()


@contextmanager
def run_lock(recipe: TrainingRecipe, *, take_over: bool = False) -> Iterator[RunLock]:
    """Holds the locks of a run for the block; see `output_lock`."""
    locations = dict.fromkeys([recipe.output, recipe.checkpoints or recipe.output])
    with ExitStack() as stack:
        locks = [output_lock(location, TRAINING, take_over=take_over) for location in locations]
        yield RunLock([stack.enter_context(lock) for lock in locks])

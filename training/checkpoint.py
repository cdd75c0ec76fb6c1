"""Checkpoints of a running stage: DeepSpeed's files and a `trainer_state.json` that commits them.

A checkpoint is written under a temporary name and renamed when every worker has written its part,
so a folder called `step-000500` is always whole. Knows what is trained only through save and load.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch.distributed
from pydantic import ValidationError

from datagen import storage
from datagen.errors import FlowmapsrError
from datagen.fields import Settings
from training.schedule import Position

STATE = "trainer_state.json"
PARTIAL = ".partial"


class TrainerState(Settings):
    """What a stage needs beside module and optimiser to go on exactly."""

    step: int
    images_seen: int
    consumed: dict[str, int]
    """Samples taken from each bucket: the loader's position."""
    seed: int
    """All randomness is drawn from generators seeded by (seed, stage, step, micro batch)."""
    world_size: int
    zero_stage: int

    @property
    def position(self) -> Position:
        return Position(self.step, tuple(sorted(self.consumed.items())))


class Trained(Protocol):
    """Networks and optimisers that keep their state below a folder; every worker calls both."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    written: float
    """Seconds since the epoch."""


class Checkpoints:
    """The folder `<run>/stages/<name>/checkpoints`."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def newest(self) -> Checkpoint | None:
        """The last whole checkpoint."""
        whole = self._whole()
        return whole[-1] if whole else None

    def save(self, trained: Trained, state: TrainerState) -> None:
        """Writes and commits a checkpoint; every worker must call it at the same step."""
        final = self.folder / f"step-{state.step:06d}"
        partial = final.with_name(final.name + PARTIAL)
        rank = torch.distributed.get_rank()
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        torch.distributed.barrier()
        trained.save(partial)
        torch.distributed.barrier()
        if rank == 0:
            storage.write_bytes(str(partial / STATE), state.model_dump_json(indent=2).encode())
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            self._tidy()
        torch.distributed.barrier()

    def load(self, trained: Trained, checkpoint: Checkpoint) -> TrainerState:
        """Restores networks and position; says what differs when the checkpoint does not fit."""
        folder = checkpoint.folder
        path = folder / STATE
        try:
            state = TrainerState.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise FlowmapsrError(
                f"the checkpoint {folder} cannot be read ({error}); remove that folder to go "
                "on from "
                "the one before"
            ) from error
        world_size = torch.distributed.get_world_size()
        if state.world_size != world_size:
            raise FlowmapsrError(
                f"the checkpoint {folder} was written by {state.world_size} workers and this "
                "run has "
                f"{world_size}: run again with workers={state.world_size}"
            )
        trained.load(folder)
        return state

    def _whole(self) -> list[Checkpoint]:
        found = []
        for folder in self.folder.glob("step-*"):
            state = folder / STATE
            if not folder.name.endswith(PARTIAL) and state.is_file():
                step = int(folder.name.removeprefix("step-"))
                found.append(Checkpoint(folder, step, state.stat().st_mtime))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def _tidy(self) -> None:
        for checkpoint in self._whole()[: -self.keep]:
            shutil.rmtree(checkpoint.folder)
        for path in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(path)

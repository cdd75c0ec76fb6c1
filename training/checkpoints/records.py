"""What a checkpoint is made of: a worker's share in memory, and the JSON records that describe it.

Knows no engine and no file system.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from datagen.records import FrozenModel
from training.data.schedule import Position

COMMIT = "trainer_state.json"
"""Written last: a folder that holds it is a checkpoint, any other is a leftover."""


@dataclass(frozen=True)
class Share:
    """What one worker adds to a checkpoint, in host memory; nothing changes it while it is written.

    Together the shares hold every value once. Names of networks and texts hold no '-' or '/'.
    """

    networks: dict[str, dict[str, Tensor]]
    """Tensors of each network by their key in its file (see `pieces`)."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Small states that are no tensors, by name."""


class FileRecord(FrozenModel):
    """A file of a checkpoint, as it was written."""

    part: str
    """The network or text that it belongs to."""
    writer: int
    """Rank of the worker that wrote it."""
    name: str
    bytes: int
    sha256: str


class ShareRecord(FrozenModel):
    """The files of one worker, all written: what its writer tells the first worker's."""

    files: tuple[FileRecord, ...]


class CheckpointOrigin(FrozenModel):
    """What a run must share with a checkpoint to go on from it."""

    stage: str
    recipe_digest: str
    """Of all that decides the result and may not be changed on the way, and so of the seed: all
    randomness is drawn from generators seeded by (seed, stage, step, micro batch)."""
    dataset_digest: str


class TrainerState(FrozenModel):
    """What a stage needs beside its networks to go on exactly, and where it was saved."""

    step: int
    images_seen: int
    consumed: dict[str, int]
    """Samples taken from each bucket: the loader's position."""
    errors: tuple[float, ...]
    """Those of the last steps, by which the next one is judged (see `LossGuard`)."""
    origin: CheckpointOrigin
    world_size: int
    """Of the workers that wrote it; any number can read it, as with `zero_stage`."""
    zero_stage: int

    @property
    def position(self) -> Position:
        return Position(self.step, tuple(sorted(self.consumed.items())))


class Commit(FrozenModel):
    """`trainer_state.json`: its presence makes the checkpoint, its digests tell whether it is
    whole."""

    state: TrainerState
    files: tuple[FileRecord, ...]
    saved: float
    """Seconds since the epoch."""
    sha256: str
    """Of this record without this field: a change of the record itself is noticed too."""

    @classmethod
    def of(cls, state: TrainerState, files: tuple[FileRecord, ...]) -> Self:
        unsigned = cls(state=state, files=files, saved=time.time(), sha256="")
        return unsigned.model_copy(update={"sha256": unsigned._digest()})

    @property
    def is_intact(self) -> bool:
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        unsigned = self.model_copy(update={"sha256": ""})
        return hashlib.sha256(unsigned.model_dump_json().encode()).hexdigest()

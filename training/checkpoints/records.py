"""The parts of a checkpoint: a worker's share in memory, and the JSON records that describe it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Self

from pydantic import ConfigDict
from torch import Tensor

from datagen.records import FrozenModel
from training.data.planned import Position

COMMIT = "trainer_state.json"
"""Written last: a folder that holds it is a checkpoint, any other is a leftover."""


@dataclass(frozen=True)
class Share:
    """One worker's part of a checkpoint, in host memory; it must not change while it is written.

    Together, the shares hold every value once. Names of networks and texts hold no '-' or '/'.
    """

    networks: dict[str, dict[str, Tensor]]
    """Tensors of each network by their key in its file (see `tensor_files`)."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Small states that are not tensors, by name."""


class FileRecord(FrozenModel):
    """A file of a checkpoint, as it was written."""

    part: str
    """The network or text that it belongs to."""
    writer: int
    """Rank of the worker that wrote it."""
    name: str
    bytes: int
    sha256: str


class CheckpointOrigin(FrozenModel):
    """What must be equal in a run and a checkpoint for the run to resume from it."""

    stage: str
    recipe_digest: str
    """Covers all settings that affect the result and must not change in a run, such as the seed:
    randomness comes only from generators seeded by (seed, stage, step)."""
    dataset_digest: str


class BestValue(FrozenModel):
    """The best value of a held-out metric in a stage so far."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # of a model that diverged

    value: float
    step: int
    waited: int = 0
    """Validations since then."""


class TrainerState(FrozenModel):
    """The state besides the networks that a stage needs to resume exactly, and its origin."""

    step: int
    images_seen: int
    consumed: dict[str, int]
    """Samples taken from each bucket: the loader's position."""
    errors: tuple[float, ...]
    """Errors of the last steps, with which `LossGuard` compares the next one."""
    best: dict[str, BestValue] = {}
    """By held-out metric; the checkpoints of these steps are kept."""
    origin: CheckpointOrigin
    world_size: int
    """Number of workers that wrote it; any number, with any `zero_stage`, can read it."""
    zero_stage: int

    @property
    def position(self) -> Position:
        return Position(self.step, tuple(sorted(self.consumed.items())))


class Commit(FrozenModel):
    """`trainer_state.json`: marks a checkpoint as complete; its digests detect damage."""

    state: TrainerState
    files: tuple[FileRecord, ...]
    saved: float
    """Seconds since the epoch."""
    sha256: str
    """Digest of this record without this field, to detect a change of the record itself."""

    @classmethod
    def of(cls, state: TrainerState, files: tuple[FileRecord, ...]) -> Self:
        unsigned = cls(state=state, files=files, saved=time.time(), sha256="")
        return unsigned.model_copy(update={"sha256": unsigned._digest()})

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def is_intact(self) -> bool:
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        unsigned = self.model_copy(update={"sha256": ""})
        return hashlib.sha256(unsigned.model_dump_json().encode()).hexdigest()

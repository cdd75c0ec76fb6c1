"""What lies in a run folder and how a run is asked to stop; shared by workers and launchers.

Knows no torch, so that a launcher starts fast.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from datagen import storage
from datagen.errors import FlowmapsrError
from training.records import StageRecord
from training.settings import READING, TrainingRecipe

STOP_FILE = "stop"


@dataclass(frozen=True)
class StageFolder:
    """Paths of one stage inside a run."""

    run: Path
    name: str

    @property
    def home(self) -> Path:
        return self.run / "stages" / self.name

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def done(self) -> Path:
        return self.home / "done.json"

    def record(self) -> StageRecord | None:
        """What the stage made, if it is finished."""
        if not self.done.is_file():
            return None
        return StageRecord.model_validate_json(self.done.read_bytes())


class StopSignal:
    """Becomes true when this process gets SIGTERM, or when somebody puts a `stop` file into the
    run.

    The file reaches workers on other machines and in threads that cannot hear signals.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / STOP_FILE
        self._signalled = False

    def listen(self) -> None:
        """Installs the SIGTERM handler; only the main thread may."""
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._signalled = True

    def __call__(self) -> bool:
        return self._signalled or self._file.exists()


def write_recipe(recipe: TrainingRecipe) -> None:
    """Writes `<run>/recipe.json`; a run folder of another recipe is refused.

    Raises:
        FlowmapsrError: the folder holds a run of another recipe, with the settings that differ.
    """
    path = Path(recipe.output) / "recipe.json"
    if path.is_file():
        old = TrainingRecipe.model_validate_json(path.read_bytes())
        differing = sorted(
            name
            for name in TrainingRecipe.model_fields
            if getattr(old, name) != getattr(recipe, name)
            and name not in ("output", "max_failures", *READING)
        )
        if differing:
            raise FlowmapsrError(
                f"{recipe.output} holds a run of another recipe (different: "
                f"{', '.join(differing)}); "
                "choose another output, or repeat the old settings to go on"
            )
    storage.write_bytes(str(path), recipe.model_dump_json(indent=2).encode())

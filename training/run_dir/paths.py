"""What lies in a run folder and how a run is asked to stop; shared by workers and launchers.

Knows no torch, so that a launcher starts fast.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import Change, diff, read_record
from training.run_dir.records import StageRecord
from training.run_dir.starts import STARTS
from training.settings.recipe import TrainingRecipe
from training.settings.stage import CORRECTABLE
from training.tracking.tracker import forget_run

log = logging.getLogger(__name__)

STOP_FILE, DONE = "stop", "done.json"


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
        return self.home / DONE

    def record(self) -> StageRecord | None:
        """What the stage made, if it is finished.

        Raises:
            FlowmapsrError: the record cannot be read.
        """
        remedy = "remove it, and training makes it again from the stage's last checkpoint"
        return read_record(self.done, StageRecord, remedy=remedy)


class StopSignal:
    """Becomes true when this process gets SIGTERM, or when somebody puts a `stop` file into the
    run.

    The file reaches workers on other machines and in threads that cannot hear signals.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / STOP_FILE
        self._signalled = False

    def ask(self) -> None:
        """Puts the file there."""
        self._file.touch()

    def forget(self) -> None:
        """Removes the file, which a start that was killed may have left; for the run's holder."""
        self._file.unlink(missing_ok=True)

    def listen(self) -> None:
        """Installs the SIGTERM handler; only the main thread may."""
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._signalled = True

    def __call__(self) -> bool:
        return self._signalled or self._file.exists()


def finished_stages(recipe: TrainingRecipe) -> list[StageRecord] | None:
    """What a run made, if all its stages are done."""
    folders = [StageFolder(Path(recipe.output), stage.name) for stage in recipe.stages]
    records = [record for folder in folders if (record := folder.record()) is not None]
    return records if len(records) == len(folders) else None


def check_recipe(recipe: TrainingRecipe) -> None:
    """Refuses a run folder in which another recipe has begun to train.

    What may be corrected on the way may differ in stages that are not finished.

    Raises:
        FlowmapsrError: naming the settings that differ, or the old recipe cannot be read.
    """
    wrong = [change for change in _changes(recipe) if not _is_correction(change, recipe)]
    if wrong and _has_begun(recipe):
        raise FlowmapsrError(
            f"{recipe.output} holds a run of another recipe (different: "
            f"{', '.join(map(str, wrong))}); choose another output, or repeat the old settings to "
            "go on"
        )


def write_recipe(recipe: TrainingRecipe) -> None:
    """Writes `<run>/recipe.json`, after `check_recipe`. One that has not begun to train is
    replaced, and what tracks it forgotten: MLflow's parameters cannot be changed."""
    changes = _changes(recipe)
    if changes and not _has_begun(recipe):
        forget_run(Path(recipe.output))
    elif changes:
        log.warning("the run goes on with other settings: %s", ", ".join(map(str, changes)))
    storage.write_bytes(str(_recipe_path(recipe)), recipe.model_dump_json(indent=2).encode())


def _is_correction(change: Change, recipe: TrainingRecipe) -> bool:
    """Whether a run that has begun may continue with it."""
    first, _, rest = change.name.partition(".")
    stage, _, field = rest.partition(".")
    if first != "stages" or field not in CORRECTABLE:
        return False
    return StageFolder(Path(recipe.output), stage).record() is None


def _changes(recipe: TrainingRecipe) -> list[Change]:
    """What differs from the recipe in the run's folder, if there is one."""
    remedy = "remove it, and the command that made this run writes it again"
    written = read_record(_recipe_path(recipe), type(recipe), remedy=remedy)
    if written is None:
        return []
    stages = [", ".join(stage.name for stage in one.stages) for one in (written, recipe)]
    if stages[0] != stages[1]:
        return [Change("stages", *stages)]
    return diff(_with_named_stages(written), _with_named_stages(recipe))


def _with_named_stages(recipe: TrainingRecipe) -> dict[str, Any]:
    content = recipe.content()
    return content | {"stages": {stage["name"]: stage for stage in content["stages"]}}


def _has_begun(recipe: TrainingRecipe) -> bool:
    """Whether any stage in the folder, of whichever recipe, came as far as its first step."""
    stages = Path(recipe.output) / "stages"
    return any(path for name in (STARTS, DONE) for path in stages.glob(f"*/{name}"))


def _recipe_path(recipe: TrainingRecipe) -> Path:
    return Path(recipe.output) / "recipe.json"

"""Trains the stages of a resolved recipe: `torchrun --nproc_per_node 2 -m training.run
recipe.json`.

Works the same under `deepspeed` and `torchrun`, with no Ray and no Prefect. To resume, run the same
command again. SIGTERM saves a checkpoint and ends. `recipe.json` is what `flowmapsr train RECIPE
... --dry-run` prints.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

import yaml
from pydantic import ValidationError

from datagen import storage
from datagen.errors import FlowmapsrError
from training.records import StageRecord
from training.settings import TrainingRecipe
from training.stages import run_stage

STOP_FILE = "stop"


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
            and name not in ("output", "max_failures")
        )
        if differing:
            raise FlowmapsrError(
                f"{recipe.output} holds a run of another recipe (different: "
                f"{', '.join(differing)}); "
                "choose another output, or repeat the old settings to go on"
            )
    storage.write_bytes(str(path), recipe.model_dump_json(indent=2).encode())


def run_training(recipe: TrainingRecipe) -> list[StageRecord] | None:
    """All stages in order on this worker; None when a stop was requested first."""
    stop = StopSignal(Path(recipe.output))
    stop.listen()
    records = []
    for stage in recipe.stages:
        record = run_stage(recipe, stage.name, stop_requested=stop)
        if record is None:
            return None
        records.append(record)
    return records


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__)
    parser.add_argument("recipe", type=Path, help="resolved training recipe, JSON or YAML")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # set by `deepspeed`
    arguments = parser.parse_args()
    try:
        recipe = TrainingRecipe.model_validate(yaml.safe_load(arguments.recipe.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        print(f"{arguments.recipe}: {error}", file=sys.stderr)
        return 2
    try:
        write_recipe(recipe)
        records = run_training(recipe)
    except FlowmapsrError as error:
        print(error, file=sys.stderr)
        return 1
    if records is None:
        print("stopped with a checkpoint; run the same command to go on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

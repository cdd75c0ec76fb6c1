"""`training.run` that records the samples of every micro step.

The last worker kills itself at a given step, as if its machine were lost.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from training.data.loader import Batch
from training.run import main
from training.trainer import ObjectiveTrainer

KEYS = "FLOWMAPSR_TEST_KEYS"
"""Environment variable: the folder for the records."""
KILLED_AT = "FLOWMAPSR_TEST_KILLED_AT"
"""Environment variable: the step in which the last worker dies."""


def _recorded(micro_step: Any) -> Any:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    records = Path(os.environ[KEYS]) / f"{rank}.jsonl"
    killed_at = int(os.environ.get(KILLED_AT, "-1"))

    def record(trainer: ObjectiveTrainer, batch: Batch, *arguments: Any, step: int) -> Any:
        if step == killed_at and rank == world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        losses = micro_step(trainer, batch, *arguments, step=step)
        if batch.micro.weight:
            position = batch.micro.index * world_size + rank
            with records.open("a") as file:
                file.write(json.dumps([step, position, batch.keys]) + "\n")
        return losses

    return record


if __name__ == "__main__":
    ObjectiveTrainer.micro_step = _recorded(ObjectiveTrainer.micro_step)  # type: ignore[method-assign]
    sys.exit(main())

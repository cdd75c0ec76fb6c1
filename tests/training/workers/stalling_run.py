"""`training.run` whose second worker falls asleep in a step, as on a stuck file system.

The first worker takes its time to say so, in which the second one ends and their connection breaks.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from training.run import main
from training.tracking.reporter import StageReporter
from training.trainer import ObjectiveTrainer

STALLED_STEP = 9


def stuck() -> None:
    time.sleep(1000)


def _fall_asleep(micro_step: Any) -> Any:
    def sleepy(trainer: ObjectiveTrainer, *arguments: Any, step: int) -> Any:
        if step == STALLED_STEP and os.environ["RANK"] == "1":
            stuck()
        return micro_step(trainer, *arguments, step=step)

    return sleepy


def _say_late(stalled: Any) -> Any:
    def late(report: StageReporter) -> None:
        time.sleep(3.0)
        stalled(report)

    return late


if __name__ == "__main__":
    ObjectiveTrainer.micro_step = _fall_asleep(ObjectiveTrainer.micro_step)  # type: ignore[method-assign]
    StageReporter.stalled = _say_late(StageReporter.stalled)  # type: ignore[method-assign]
    sys.exit(main())

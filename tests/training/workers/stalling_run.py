"""`training.run` whose second worker hangs in a step, as on a stuck file system.

The first worker reports the stall late, after the second one has ended and their connection broke.
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


def _hang(micro_step: Any) -> Any:
    def hanging(trainer: ObjectiveTrainer, *arguments: Any, step: int) -> Any:
        if step == STALLED_STEP and os.environ["RANK"] == "1":
            stuck()
        return micro_step(trainer, *arguments, step=step)

    return hanging


def _report_late(stalled: Any) -> Any:
    def late_report(report: StageReporter) -> None:
        time.sleep(3.0)
        stalled(report)

    return late_report


if __name__ == "__main__":
    ObjectiveTrainer.micro_step = _hang(ObjectiveTrainer.micro_step)  # type: ignore[method-assign]
    StageReporter.stalled = _report_late(StageReporter.stalled)  # type: ignore[method-assign]
    sys.exit(main())

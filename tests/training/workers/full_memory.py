"""`training.run` whose GPU is full in its third step."""

from __future__ import annotations

import sys
from typing import Any

import torch

from training.run import main
from training.trainer import ObjectiveTrainer

FULL_AT = 2


def _full(micro_step: Any) -> Any:
    def limited(trainer: ObjectiveTrainer, *arguments: Any, step: int) -> Any:
        if step == FULL_AT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return micro_step(trainer, *arguments, step=step)

    return limited


if __name__ == "__main__":
    ObjectiveTrainer.micro_step = _full(ObjectiveTrainer.micro_step)  # type: ignore[method-assign]
    sys.exit(main())

"""Whether a checkpoint is complete before the launcher kills the workers that it stops."""

from __future__ import annotations

import logging
import math
import os

from training.checkpoints.records import Commit

log = logging.getLogger(__name__)

DEFAULT_SECONDS = 30.0
"""Of torchrun, DeepSpeed's launcher, Slurm and Kubernetes alike; each sends SIGKILL after it."""
_TORCHRUN, _TORCHRUN_SECONDS = "TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_DEEPSPEED = "CROSS_SIZE"
"""Environment variables that the launchers set for their workers, and torchrun's for its time."""
MARGIN = 3
"""The step in flight, a checkpoint that is still being written, and the last one."""


def seconds_after_sigterm() -> float | None:
    """How long the launcher leaves its workers after SIGTERM; None where it kills none, as Ray.

    A worker cannot see the option `--shutdown-timeout` of torchrun, but can see the variable.
    """
    if _TORCHRUN in os.environ:
        known = torchrun_can_wait_longer()
        return float(
            os.environ.get(_TORCHRUN_SECONDS, DEFAULT_SECONDS) if known else DEFAULT_SECONDS
        )
    return DEFAULT_SECONDS if _DEEPSPEED in os.environ else None


def torchrun_can_wait_longer() -> bool:
    """Whether this torch has that option and variable; 2.13 does, 2.11 does not."""
    from torch.distributed.launcher.api import LaunchConfig  # only needed here

    return hasattr(LaunchConfig, "shutdown_timeout")


def report_first_checkpoint(commit: Commit, *, seconds: float) -> None:
    """Logs how large it was and how long it took; a warning if that is too long for a stop."""
    step, gigabytes = commit.state.step, commit.bytes / 1e9
    size = f"the checkpoint of step {step}: {gigabytes:.3g} GB in {seconds:.1f} s"
    allowed = seconds_after_sigterm()
    if allowed is None or seconds <= allowed:
        log.info("%s", size)
        return
    needed = 60 * math.ceil(MARGIN * seconds / 60)
    log.warning(
        "%s; workers are killed %.0f s after SIGTERM, before it is complete, and a stop would lose "
        "the steps since the one before. Stop this run by making an empty file named stop in its "
        "folder, which has no time limit, or start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=%d "
        "(torchrun) and as much in Slurm (--signal=TERM@%d) or Kubernetes "
        "(terminationGracePeriodSeconds: %d)",
        size,
        allowed,
        *[needed] * 3,
    )

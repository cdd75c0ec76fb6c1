"""Starts training workers under torchrun, as a user would, and stops them with a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.launch import torchrun
from tests.support.processes import Process
from training.run_dir.paths import RECIPE, stage_paths
from training.settings.recipe import TrainingRecipe

Launch = Callable[[str, Sequence[str], Mapping[str, str]], Process]
"""Starts one worker: a module, its words, and the environment."""
STOP_SECONDS = 60.0
"""For the last checkpoint after SIGTERM."""


def launch_torchrun(module: str, words: Sequence[str], env: Mapping[str, str]) -> Process:
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun(1), module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )


def environment(*, on_cpu: bool = False) -> dict[str, str]:
    """That of one worker of several side by side, which must not take all cores each."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", **hidden}


def start_training(
    recipe: TrainingRecipe, launch: Launch, env: Mapping[str, str] | None = None
) -> Process:
    """Starts or resumes a recipe, which is written beside its run."""
    output = Path(recipe.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f"{output.name}-{RECIPE}")
    path.write_text(recipe.model_dump_json(indent=1))
    return launch("training.run", [str(path)], env if env is not None else dict(os.environ))


def train_with_stop(
    recipe: TrainingRecipe, launch: Launch, *, limit: float, env: Mapping[str, str]
) -> int:
    """Trains a recipe to its end, with a stop by SIGTERM after the first checkpoint.

    Args:
        limit: seconds for all of it.

    Returns:
        How often it was started: 2, or 1 where it ended before the signal came.

    Raises:
        RuntimeError: it failed, with all that it printed; or it took too long.
    """
    end = time.monotonic() + limit
    process = start_training(recipe, launch, env)
    stopped = _stop_at_checkpoint(process, recipe, end)
    said = ended(process, end)
    if process.returncode == 0:
        return 1
    if not stopped:
        raise RuntimeError(said)
    process = start_training(recipe, launch, env)
    resumed = ended(process, end)
    if process.returncode:
        raise RuntimeError(said + resumed)
    return 2


def _stop_at_checkpoint(process: Process, recipe: TrainingRecipe, end: float) -> bool:
    """Whether it was at work when its first checkpoint appeared, and was told to stop."""
    folders = [stage.checkpoints for stage in stage_paths(recipe)]
    while process.poll() is None and time.monotonic() < end:
        if any(any(folder.glob("step-*")) for folder in folders):
            process.send_signal(signal.SIGTERM)
            return True
        time.sleep(0.05)
    return False


def ended(process: Process, end: float) -> str:
    """What a process printed until it ended.

    Raises:
        RuntimeError: it did not end in time, and was stopped.
    """
    try:
        said: Any = process.communicate(timeout=max(1.0, end - time.monotonic()))[0]
        return str(said)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{stopped(process)}\nstopped: it took too long") from error


def stopped(process: Process) -> str:
    """Stops a process with a checkpoint, or kills it where it takes too long; what it printed."""
    process.send_signal(signal.SIGTERM)
    try:
        return str(process.communicate(timeout=STOP_SECONDS)[0])
    except subprocess.TimeoutExpired:
        process.kill()
        return str(process.communicate()[0])

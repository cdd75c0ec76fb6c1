"""Starts a module of the tests on workers of their own and reads what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def found_by(module: str, *words: str, workers: int, results: Path) -> dict[str, Any]:
    """What `module` wrote to its last argument, `results`, when `torchrun` ran it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc_per_node={workers}", "-m", module, *words, str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(results.read_text())
    return found

"""Machines with another version of the code, or another time, are told before they train."""

from __future__ import annotations

from pathlib import Path

from tests.support.launch import start_workers
from tests.support.tiny import WARMUP, RunMaker
from training.run_dir.paths import StagePaths


def test_workers_of_another_version_do_not_train(run_recipe: RunMaker, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    process = start_workers(recipe, tmp_path, module="tests.training.workers.another_version")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "machine-0 has 0.0.0, but machine-1 has 0.1.0; install the same on all" in said
    assert "clocks differ from this machine's: machine-1 by +60 s" in said
    assert "Traceback" not in said
    assert not StagePaths(Path(recipe.output), "warmup").checkpoints.exists()

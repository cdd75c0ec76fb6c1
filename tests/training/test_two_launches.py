"""Two launches without Ray into one run folder: the second is refused, or takes it over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.io.lock import LockLostError
from tests.support.eventually import eventually
from tests.support.launch import ForkedLauncher, start_workers
from tests.support.processes import kill_tree
from tests.support.s3 import FaultyS3
from tests.support.tiny import WARMUP, RunMaker
from training.run_dir.lock import run_lock
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_progress, read_starts
from training.settings.recipe import TrainingRecipe

STEPS = 100_000


@pytest.fixture
def recipe(run_recipe: RunMaker, tmp_path: Path) -> TrainingRecipe:
    return run_recipe(tmp_path / "run", stages=[{**WARMUP, "steps": STEPS}])


@pytest.fixture
def first(recipe: TrainingRecipe, tmp_path: Path) -> Iterator[ForkedLauncher]:
    """A launch that trains."""
    process = start_workers(recipe, tmp_path)
    eventually(lambda: _step(recipe) > 0)
    yield process
    if process.poll() is None:
        kill_tree(process)
    process.communicate(timeout=60)


def _step(recipe: TrainingRecipe) -> int:
    progress = read_progress(StagePaths(Path(recipe.output), "warmup"))
    return 0 if progress is None else progress.step


def _stack_files(recipe: TrainingRecipe) -> list[tuple[str, int, int]]:
    """Name, inode and time of change of the files that the run's workers keep open."""
    stacks = StagePaths(Path(recipe.output), "warmup").stacks
    files = [(path.name, path.stat()) for path in sorted(stacks.iterdir())]
    assert files
    return [(name, status.st_ino, status.st_mtime_ns) for name, status in files]


def test_the_second_of_two_launches_is_refused_and_the_first_continues(
    recipe: TrainingRecipe, first: ForkedLauncher, tmp_path: Path
) -> None:
    before = _stack_files(recipe)
    second = start_workers(recipe, tmp_path)
    said, _ = second.communicate(timeout=120)
    assert second.returncode != 0
    assert "another training is writing there" in said and "pid" in said
    assert _stack_files(recipe) == before
    step = _step(recipe)
    eventually(lambda: _step(recipe) > step)
    assert first.poll() is None


def test_two_runs_cannot_share_a_checkpoint_location(
    recipe: TrainingRecipe, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    checkpoints = f"s3://{faulty_s3.bucket}/shared"
    one = recipe.model_copy(update={"checkpoints": checkpoints})
    other = one.model_copy(update={"output": str(tmp_path / "other")})
    with run_lock(one) as lock:
        refused = pytest.raises(FlowmapsrError, match="shared: another training is writing there")
        with refused, run_lock(other):
            pass
        with run_lock(other, take_over=True) as taken:
            taken.raise_if_lost()
            for held in lock.locks:
                held.renew()
            with pytest.raises(LockLostError, match="shared"):
                lock.raise_if_lost()
    with run_lock(other):
        assert len(list(tmp_path.glob("*/training-*.lock"))) == 1
    assert not list(tmp_path.glob("*/training-*.lock"))


@pytest.mark.slow
def test_a_launch_that_takes_over_continues_alone(
    recipe: TrainingRecipe, first: ForkedLauncher, tmp_path: Path
) -> None:
    second = start_workers(recipe, tmp_path, words=["--take-over"])
    said, _ = first.communicate(timeout=120)
    assert first.returncode != 0 and "has taken over" in said
    stage = StagePaths(Path(recipe.output), "warmup")
    eventually(lambda: len(read_starts(stage)) == 2)
    step = _step(recipe)
    eventually(lambda: _step(recipe) > step)
    second.send_signal(signal.SIGTERM)
    said, _ = second.communicate(timeout=120)
    assert "stopped with a checkpoint" in said

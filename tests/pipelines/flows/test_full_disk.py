"""The disk of a run fills up: nothing valid is lost, and the error names the reason and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import write_training
from tests.support.eventually import eventually
from tests.support.small_disk import DiskMaker
from tests.support.tiny import WARMUP, RunMaker, same_weights
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.events import End

Run = Callable[..., Any]
Filled = Callable[[Path], AbstractContextManager[None]]
MEGABYTE = 1 << 20


def _words(recipe: TrainingRecipe, folder: Path) -> list[str]:
    path = write_training(folder / "recipe.json", recipe)
    return ["train", path, f"output={recipe.output}", "--json"]


def _newest(run: Path) -> int:
    commits = run.glob("stages/warmup/checkpoints/step-*/trainer_state.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in commits), default=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_on_a_full_disk_reports_it_and_resumes_when_there_is_space(
    run_recipe: RunMaker,
    undisturbed: TrainingRecipe,
    ray_cluster_address: str,
    small_disk: DiskMaker,
    filled: Filled,
    tmp_path: Path,
    flowmapsr: Run,
    start: Run,
    finished: Run,
) -> None:
    disk = small_disk(20 * MEGABYTE)
    run = disk / "run"
    recipe = run_recipe(run, stages=[WARMUP])
    words, env = _words(recipe, tmp_path), {"RAY_ADDRESS": ray_cluster_address}
    process = start(*words, env=env)
    eventually(lambda: _newest(run) >= 10)
    with filled(disk):
        ended = finished(process)
        kept = _newest(run)
        assert 10 <= kept < 60, "the disk was full too late"
        status = flowmapsr("status", str(run))
    assert ended.code == 1 and "Traceback" not in ended.err
    assert "the checkpoint of step 60 could not be written" in ended.json["error"]
    assert "No space left on device" in ended.json["error"]
    assert "free some space there" in ended.json["error"]
    assert ended.json["error"].endswith(f"run the same command again to resume from step {kept}")
    # Before the end: by the command, by the worker's reports, and of the first checkpoint only.
    assert ended.err.count("no space left on this disk; training continues") == 1
    assert ended.err.count("without others while the disk is full") == 1
    assert ended.err.count("warning: the checkpoint of step") == 1
    assert status.code == 0 and "Traceback" not in status.err

    again = flowmapsr(*words, env=env)
    assert again.code == 0, again.err
    assert [start.step for start in read_starts(StagePaths(run, "warmup"))] == [0, kept]
    assert same_weights(recipe, undisturbed, "warmup")
    for journal in (run / "tracking.jsonl", run / "stages" / "warmup" / "tracking.jsonl"):
        events = [json.loads(line) for line in journal.open()]
        assert events[-1] == End(status="FINISHED").model_dump()


def test_a_training_on_a_full_disk_is_refused_before_anything_starts(
    run_recipe: RunMaker, small_disk: DiskMaker, filled: Filled, tmp_path: Path, flowmapsr: Run
) -> None:
    disk = small_disk(MEGABYTE)
    words = _words(run_recipe(disk / "run", stages=[WARMUP]), tmp_path)
    with filled(disk):
        ended = flowmapsr(*words)
    assert ended.code == 1 and "Traceback" not in ended.err
    assert "No space left on device" in ended.err and "free some space there" in ended.err

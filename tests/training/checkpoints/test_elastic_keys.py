"""Every sample once per epoch when a worker dies and another number of workers continues."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.dataset.shard_index import read_shard
from tests.support.launch import start_workers
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, write_photos
from tests.training.workers.recording_run import KEYS, KILLED_AT
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_starts
from training.settings.recipe import TrainingRecipe

PHOTOS, STEPS, KILLED_STEP = 8, 20, 12
EPOCH = PHOTOS * 4 // 4
"""Steps: four variants of a photo, four samples a step."""
Steps = dict[int, list[str]]


@pytest.fixture(scope="module")
def larger_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("larger")
    photos = write_photos(folder / "photos", PHOTOS)
    build_in_process(dataset_recipe(photos, folder / "dataset"))
    return folder / "dataset"


@pytest.fixture(scope="module")
def recipe(run_recipe: RunMaker, larger_dataset: Path) -> TrainingRecipe:
    stage = {**WARMUP, "steps": STEPS, "checkpoint_every_steps": 5}
    recipe = run_recipe(Path("/nowhere"), stages=[stage])
    return recipe.model_copy(update={"manifest": str(larger_dataset / "manifest.json")})


@pytest.fixture(scope="module")
def undisturbed_steps(recipe: TrainingRecipe, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return _trained(recipe, tmp_path_factory.mktemp("whole"), "whole", workers=2)


def _trained(
    recipe: TrainingRecipe, folder: Path, name: str, *, workers: int, killed_at: int | None = None
) -> Steps:
    """The samples of each step that one launch has trained on, in the order of the global batch."""
    notes = folder / name
    notes.mkdir()
    recipe = recipe.model_copy(update={"output": str(folder / "run"), "workers": workers})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEYS, str(notes))
        if killed_at is not None:
            patch.setenv(KILLED_AT, str(killed_at))
        process = start_workers(recipe, folder, module="tests.training.workers.recording_run")
    output, _ = process.communicate(timeout=200)
    assert (process.returncode == 0) == (killed_at is None), output
    parts = [json.loads(line) for file in notes.iterdir() for line in file.open()]
    steps: Steps = {}
    for step, _, keys in sorted(parts):
        steps.setdefault(step, []).extend(keys)
    return steps


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_an_epoch_has_every_sample_once_when_the_number_of_workers_changes(
    recipe: TrainingRecipe,
    larger_dataset: Path,
    undisturbed_steps: Steps,
    tmp_path: Path,
    before: int,
    after: int,
) -> None:
    first = _trained(recipe, tmp_path, "first", workers=before, killed_at=KILLED_STEP)
    second = _trained(recipe, tmp_path, "second", workers=after)
    starts = read_starts(StagePaths(tmp_path / "run", "warmup"))
    assert [len(start.workers.hosts) for start in starts] == [before, after]
    resumed = starts[1].step
    assert 0 < resumed < KILLED_STEP and resumed % EPOCH != 0, "not in the middle of an epoch"
    # What was trained after the checkpoint is lost with its weights, and trained again.
    counted = {step: keys for step, keys in first.items() if step < resumed} | second
    assert list(second) == list(range(resumed, STEPS))
    assert counted == undisturbed_steps
    assert {step: keys for step, keys in first.items() if len(keys) == 4}.items() <= (
        undisturbed_steps.items()
    )
    shards = [
        read_shard(str(larger_dataset / one.path))
        for one in load_manifest(str(larger_dataset)).shards
    ]
    every = sorted(sample.key for shard in shards for sample in shard)
    assert len(every) == 4 * EPOCH == len(set(every))
    for epoch in range(STEPS // EPOCH):
        inside = range(epoch * EPOCH, (epoch + 1) * EPOCH)
        assert sorted(chain.from_iterable(counted[step] for step in inside)) == every

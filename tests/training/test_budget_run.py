"""A stage that draws two pixel budgets with different batch sizes, under `torchrun`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.settings import BucketSettings, PixelBudget
from tests.support.launch import train
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, write_photos
from training.checkpoints.records import COMMIT, Commit
from training.data.bucket_mix import bucket_shares
from training.data.planned import Position
from training.data.schedule import Schedule

STEPS = 10
BUDGETS = [
    {"side": 32, "probability": 0.5, "global_batch": 4, "micro_batch": 1},
    {"side": 64, "probability": 0.5, "global_batch": 2, "micro_batch": 1},
]


def test_every_step_has_the_size_of_its_budget_and_its_samples_are_counted(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = dataset_recipe(write_photos(tmp_path / "photos", 3), tmp_path / "dataset")
    buckets = BucketSettings(
        budgets=(PixelBudget(side=32), PixelBudget(side=64)), max_aspect_ratio=1.0
    )
    build_in_process(recipe.model_copy(update={"buckets": buckets}))
    manifest = load_manifest(recipe.output)
    stage = {**WARMUP, "steps": STEPS, "budgets": BUDGETS}
    training = run_recipe(tmp_path / "run", stages=[stage])
    training = training.model_copy(update={"manifest": recipe.output})
    train(training, tmp_path)

    draws = bucket_shares(training.stages[0], [manifest])
    schedule = Schedule(
        [manifest], draws, seed=training.seed, shuffle_window_shards=8, split="train"
    )
    position, expected = Position(), Counter[str]()
    for _ in range(STEPS):
        step = schedule.step_at(position)
        position = step.position
        expected[step.bucket] += {"32x32": 4, "64x64": 2}[step.bucket]
    assert len(expected) == 2 and expected.total() < 4 * STEPS
    home = Path(training.output) / "stages" / "warmup"
    committed = home / "checkpoints" / f"step-{STEPS:06d}" / COMMIT
    state = Commit.model_validate_json(committed.read_bytes()).state
    assert (state.consumed, state.images_seen) == (expected, expected.total())
    assert json.loads((home / "done.json").read_text())["images_seen"] == expected.total()
    config = json.loads((home / "deepspeed.json").read_text())
    assert config["gradient_accumulation_steps"] == 2

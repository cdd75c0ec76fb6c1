"""A worker uses at most the memory that `worker_memory` estimates, with 12-megapixel photos."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datagen.build.memory import worker_memory
from datagen.degradation.settings import DegradationSettings, Resize
from datagen.settings import BucketSettings, DatasetRecipe, FilterSettings, PixelBudget

THREADS = 2
BUILD = """
import re, sys
from pathlib import Path
from datagen.build.builder import ShardBuilder
from datagen.build.plan import plan_dataset
from datagen.settings import DatasetRecipe
recipe = DatasetRecipe.model_validate_json(sys.argv[1])
plan = plan_dataset(recipe)
builder = ShardBuilder(recipe, threads=int(sys.argv[2]))
assert sum(builder(task).num_samples for task in plan.tasks) == int(sys.argv[3])
# Not `ru_maxrss`, which a new process takes over from the one that started it.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.fixture(scope="module")
def large_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six different JPEGs of 4000x3000 pixels."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for index in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize((4000, 3000), Image.Resampling.BILINEAR).save(folder / f"{index}.jpg")
    return folder


def _peak(recipe: DatasetRecipe, samples: int) -> int:
    command = [sys.executable, "-c", BUILD, recipe.model_dump_json(), str(THREADS), str(samples)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def test_images_that_are_larger_than_the_sample_are_reserved_for() -> None:
    def memory(**changes: object) -> int:
        degradation = DegradationSettings.model_validate(changes)
        recipe = DatasetRecipe(sources=("/a",), output="/b", degradation=degradation)
        return worker_memory(recipe, threads=1)

    enlarged = (Resize(factor=(0.5, 2)), *DegradationSettings().operations)
    assert memory(scale=(0.5, 2)) == memory(operations=enlarged) > memory() + 3 * 512**2 * 110 - 1
    relative = (Resize(relative_to="lq", factor=(0.5, 2)), *DegradationSettings().operations)
    assert memory(scale=(0.5, 2), operations=relative) == memory(scale=(0.25, 2))
    with pytest.raises(ValueError, match="greater than or equal to 0.25"):
        memory(scale=(1e-3, 2))


def test_memory_is_bounded_and_does_not_grow_with_the_task(
    large_photos: Path, tmp_path: Path
) -> None:
    recipe = DatasetRecipe(
        sources=(str(large_photos),),
        output=str(tmp_path / "a"),
        buckets=BucketSettings(budgets=(PixelBudget(side=512),)),
        filters=FilterSettings(max_megapixels=12),
    )
    bound = worker_memory(recipe, threads=THREADS)
    assert bound < 1_300_000_000
    few = _peak(recipe, samples=6)
    many = _peak(
        recipe.model_copy(update={"samples_per_photo": 8, "output": str(tmp_path / "b")}),
        samples=48,
    )
    assert few < bound and many < bound
    assert many < few + 100_000_000

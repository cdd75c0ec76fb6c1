"""The recipes that come with the package build datasets from any folder of photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.build.in_process import build_in_process
from pipelines.recipes.load import dataset_recipe
from tests.support.tiny import write_photos


@pytest.mark.parametrize(
    "name",
    [
        *("realesrgan", "elir-faces", "elir-faces-code", "elir-sr8", "elir-denoising"),
        *("elir-bsr", "elir-inpainting", "elir-box-inpainting", "elir-colorization"),
    ],
)
def test_a_bundled_degradation_recipe_builds_a_dataset(name: str, tmp_path: Path) -> None:
    recipe = dataset_recipe(
        name,
        {
            "sources": [str(write_photos(tmp_path / "photos", 3))],
            "output": str(tmp_path / "dataset"),
            "buckets.budgets": [{"side": 64}],
        },
    )
    manifest = build_in_process(recipe)
    assert manifest.num_samples == 3 and manifest.rejected.count == 0
    assert (tmp_path / "dataset" / "preview.png").is_file()

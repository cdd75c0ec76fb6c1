"""A dataset whose manifest has the setting names of an earlier version stays readable."""

from __future__ import annotations

import shutil
from pathlib import Path

from datagen.build.survey import survey
from datagen.dataset.manifest import load_manifest
from datagen.settings import DatasetRecipe

OLD = Path(__file__).parents[2] / "golden" / "old_dataset"
"""A manifest that commit 2fe7421 wrote, with names of settings that have changed since."""


def test_a_manifest_keeps_its_digest_and_gives_its_recipe_by_the_names_of_today() -> None:
    manifest = load_manifest(str(OLD))
    assert "variants" in manifest.recipe and manifest.num_samples == 2
    recipe = manifest.dataset_recipe("/set")
    assert (recipe.samples_per_photo, recipe.images.gray) == (2, "reject")


def test_the_same_recipe_by_the_names_of_today_may_add_photos_to_it(tmp_path: Path) -> None:
    output = tmp_path / "set"
    shutil.copytree(OLD, output)
    old = load_manifest(str(OLD)).dataset_recipe(str(output))
    values = old.model_dump(mode="json")
    assert not {"variants", "grey"} & {*values, *values["images"]}  # codespell:ignore grey
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "new.png").write_bytes(b"not looked into by a survey")
    recipe = DatasetRecipe.model_validate({**values, "sources": [str(tmp_path / "photos")]})
    assert len(survey(recipe).new) == 1

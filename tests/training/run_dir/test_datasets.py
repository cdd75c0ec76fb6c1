"""A run stays with the dataset that it began with, and says what else is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.errors import FlowmapsrError
from tests.support.tiny import DISTILL, WARMUP, RunMaker, dataset_recipe, grow, write_photos
from training.preflight import check_run
from training.run_dir.datasets import (
    about_newer_data,
    open_stage_datasets,
    plan_datasets,
    recorded_datasets,
    replacement_told,
    write_datasets,
)
from training.run_dir.paths import stage_paths
from training.run_dir.recipe_guard import write_recipe
from training.settings.recipe import TrainingRecipe


@pytest.fixture
def recipe(dataset: Path, run_recipe: RunMaker, tmp_path: Path) -> TrainingRecipe:
    """Two stages on a dataset of their own."""
    shutil.copytree(dataset, tmp_path / "dataset")
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, DISTILL])
    return recipe.model_copy(update={"manifest": str(tmp_path / "dataset")})


def _begin(recipe: TrainingRecipe, stage: int, *, newer_data: bool = False) -> None:
    """As a command does it that reaches the first step of a stage."""
    write_datasets(recipe, check_run(recipe, newer_data=newer_data))
    starts = stage_paths(recipe)[stage].starts
    starts.parent.mkdir(parents=True)
    starts.touch()


def _digests(recipe: TrainingRecipe) -> list[str]:
    datasets = recorded_datasets(recipe)
    manifests = (
        open_stage_datasets(recipe, one.name, datasets)[0].manifest for one in recipe.stages
    )
    return [manifest.digest for manifest in manifests]


def test_a_run_that_has_begun_stays_with_its_data_until_it_is_told_otherwise(
    recipe: TrainingRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(recipe.manifest)
    first = load_manifest(recipe.manifest).digest
    _begin(recipe, 0)
    assert caplog.text == ""
    second = grow(root, tmp_path / "more").digest
    write_datasets(recipe, check_run(recipe))
    check_run(recipe)
    told = "8 samples more than this training took up (20, not 12), and it is trained without them"
    assert caplog.text.count(f"{root} has {told}. To train distill on all of them, add") == 1
    assert _digests(recipe) == [first, first]

    _begin(recipe, 1, newer_data=True)
    assert f"trained on all 20 samples that {root} has now: distill" in caplog.text
    assert _digests(recipe) == [first, second]
    states = recorded_datasets(recipe).states
    assert [(one.digest, one.samples) for one in states] == [(first, 12), (second, 20)]
    third = grow(root, tmp_path / "most", count=6).digest
    caplog.clear()
    write_datasets(recipe, check_run(recipe, newer_data=True))
    assert "24, not 20" in caplog.text and "give another output" in caplog.text
    assert _digests(recipe) == [first, second] and third == load_manifest(recipe.manifest).digest


def test_a_run_that_has_not_begun_takes_the_data_that_are_there(
    recipe: TrainingRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_datasets(recipe, check_run(recipe))
    second = grow(Path(recipe.manifest), tmp_path / "more").digest
    write_datasets(recipe, check_run(recipe, newer_data=True))
    assert _digests(recipe) == [second, second]
    assert f"on all 20 samples that {recipe.manifest} has now: warmup, distill" in caplog.text


def test_another_dataset_at_the_place_is_refused_with_digests_dates_and_fix(
    recipe: TrainingRecipe, tmp_path: Path
) -> None:
    root = Path(recipe.manifest)
    first = load_manifest(recipe.manifest).digest
    _begin(recipe, 0)
    shutil.move(root, tmp_path / "old")
    photos = write_photos(tmp_path / "others", 4)
    (photos / "0.png").unlink()
    now = build_in_process(dataset_recipe(photos, root)).digest
    os.utime(root / "manifest.json", (86400, 86400))
    for newer_data in (False, True):
        with pytest.raises(FlowmapsrError) as refusal:
            check_run(recipe, newer_data=newer_data)
        for part in (now[:12], "1970-01-02 00:00 UTC", first[:12], "manifest=..."):
            assert part in str(refusal.value)
    told = "another one now.* found by this: 9 samples cannot"
    with pytest.raises(FlowmapsrError, match=told), replacement_told(recipe, "warmup"):
        raise FlowmapsrError("9 samples cannot be used")
    moved = recipe.model_copy(update={"manifest": str(tmp_path / "old" / "manifest.json")})
    check_run(moved)
    with pytest.raises(FlowmapsrError, match="^no space$"), replacement_told(moved, "warmup"):
        raise FlowmapsrError("no space")
    assert _digests(moved) == [first, first]


def test_a_manifest_that_is_broken_or_gone_does_not_end_a_run(
    recipe: TrainingRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_manifest(recipe.manifest).digest
    _begin(recipe, 0)
    Path(recipe.manifest, "manifest.json").unlink()
    write_datasets(recipe, check_run(recipe))
    assert _digests(recipe) == [first, first]
    assert "it is not known whether there are newer data" in caplog.text


def test_a_training_can_be_given_an_earlier_state_of_a_dataset(
    recipe: TrainingRecipe, tmp_path: Path
) -> None:
    root, first = Path(recipe.manifest), load_manifest(recipe.manifest).digest
    second = grow(root, tmp_path / "more").digest
    kept = recipe.model_copy(update={"manifest": f"{root}/manifests/{first}.json"})
    assert [one.digest for one in plan_datasets(recipe).states] == [second]
    _begin(kept, 0)
    assert _digests(kept) == [first, first]
    assert about_newer_data(kept, recorded_datasets(kept)) == ""


def test_a_mixture_stays_with_the_state_of_each_source(
    recipe: TrainingRecipe, tmp_path: Path
) -> None:
    first, second = Path(recipe.manifest), tmp_path / "second"
    digests = [load_manifest(recipe.manifest).digest]
    made = dataset_recipe(write_photos(tmp_path / "photos", 4), second)
    digests.append(build_in_process(made.model_copy(update={"seed": 1})).digest)
    values = recipe.model_dump(mode="json", exclude={"manifest"})
    sources = [{"uri": str(first), "weight": 3}, {"uri": str(second), "weight": 1}]
    mixed = TrainingRecipe.model_validate({**values, "sources": sources})
    assert mixed.manifest == str(first) and mixed.weights == (3, 1)

    write_recipe(mixed, on_replace=lambda _: None)
    _begin(mixed, 0)
    (state,) = recorded_datasets(mixed).states
    assert [one.digest for one in state.parts] == digests and state.digest not in digests
    grow(first, tmp_path / "more")
    opened = open_stage_datasets(mixed, "warmup", recorded_datasets(mixed))
    assert [one.manifest.digest for one in opened] == digests
    told = about_newer_data(mixed, recorded_datasets(mixed))
    assert told.startswith(f"the mixture of {first} and {second} has 8 samples more")

    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(FlowmapsrError, match=r"^sources.1.uri .* give .* as sources.1.uri=\.\.\."):
        check_run(mixed)
    heavier = [{**sources[0], "weight": 2}, sources[1]]
    with pytest.raises(FlowmapsrError, match=r"different: sources.0.weight was 3.0, is 2.0"):
        check_run(TrainingRecipe.model_validate({**values, "sources": heavier}))

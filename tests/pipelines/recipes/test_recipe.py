"""Recipes are found, extended, overridden and made whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.build.memory import worker_memory
from datagen.settings import DatasetRecipe
from pipelines.recipes.files import BUNDLED, bundled_recipes, purpose
from pipelines.recipes.load import (
    dataset_recipe,
    fitting_recipe,
    full_recipe,
    training_recipe,
)
from tests.pipelines.recipes.texts import FULL, PATHS, TRAINING, Write


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_valid(name: str) -> None:
    assert dataset_recipe(name, PATHS).output == "/set"


def test_each_ablation_of_elir_is_a_recipe_that_changes_the_training_of_the_demo() -> None:
    paths = ["manifest=/set", "output=/run"]
    demo, seen = training_recipe("elir-demo", paths), []
    for name in sorted(
        f"elir-ablations/{path.stem}" for path in BUNDLED.glob("elir-ablations/*.yaml")
    ):
        seen.append(training_recipe(name, paths))
        assert seen[-1] not in (demo, *seen[:-1]), name
        assert 20 < len(purpose(name)) <= 80, name
        assert dataset_recipe(name, PATHS) == dataset_recipe("elir-demo", PATHS)
    assert len(seen) == 17


def test_the_readmes_cluster_command_is_valid() -> None:
    overrides = ["manifest=s3://bucket/set", "output=/shared/run", "workers={min: 8, max: 16}"]
    recipe = training_recipe("flowmapsr-paper", overrides)
    assert (recipe.least_workers, recipe.most_workers) == (8, 16)


def test_a_bundled_recipe_can_be_extended_and_overridden(write: Write) -> None:
    path = write("mine.yaml", "extends: demo\ndataset: {samples_per_photo: 2, crop: cover}")
    recipe = dataset_recipe(path, [*PATHS, "samples_per_photo=3"])
    assert (recipe.samples_per_photo, recipe.crop) == (3, "cover")
    assert recipe.buckets == dataset_recipe("demo", PATHS).buckets


def test_a_runs_own_recipe_repeats_it_elsewhere(write: Write) -> None:
    first = training_recipe("demo", ["manifest=/set", "output=/run"])
    again = training_recipe(write("recipe.json", first.model_dump_json()), ["output=/new"])
    assert again == first.model_copy(update={"output": "/new"})


def test_extends_is_relative_to_its_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    write("team/base.yaml", "dataset: {seed: 5, samples_per_photo: 2}")
    write("team/mid.yaml", "extends: ./base.yaml\ndataset: {samples_per_photo: 3}")
    path = write("mine.yaml", "extends: team/mid.yaml\ndataset: {workers: 4}")
    recipe = dataset_recipe(path, PATHS)
    assert (recipe.seed, recipe.samples_per_photo, recipe.workers) == (5, 3, 4)


def test_stages_are_reached_by_name(write: Write) -> None:
    write("base.yaml", TRAINING)
    path = write("mine.yaml", "extends: ./base.yaml\ntraining: {stages: {warmup: {steps: 11}}}")
    recipe = training_recipe(path, ["stages.distill.steps=200", "manifest=/m", "output=/run"])
    assert [stage.steps for stage in recipe.stages] == [11, 200]


def test_a_stage_can_repeat_another_by_a_merge_key(write: Write) -> None:
    text = """
    training:
      stages:
        - &first {name: warmup, objective: {kind: flow_matching}, steps: 10, global_batch: 8}
        - {<<: *first, name: distill, objective: {kind: self_distillation}}
    """
    recipe = training_recipe(write("mine.yaml", text), ["manifest=/m", "output=/run"])
    assert [(s.name, s.objective.kind, s.steps, s.global_batch) for s in recipe.stages] == [
        ("warmup", "flow_matching", 10, 8),
        ("distill", "self_distillation", 10, 8),
    ]


def test_a_default_can_be_changed_in_part() -> None:
    recipe = dataset_recipe("demo", [*PATHS, "degradation.operations.3.quality=[50, 60]"])
    assert recipe.degradation.operations[3].model_dump() == {"kind": "jpeg", "quality": (50, 60)}


def test_another_kind_drops_the_fields_of_the_first() -> None:
    recipe = dataset_recipe("demo", [*PATHS, "codec.kind=autoencoder_kl", "codec.source=me/vae"])
    assert recipe.codec.model_dump(include={"kind", "source"}) == {
        "kind": "autoencoder_kl",
        "source": "me/vae",
    }


def test_local_paths_become_absolute_and_uris_stay(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    recipe = dataset_recipe("demo", ["sources=[a, ~/b, s3://bucket/c, /d/../e]", "output=out"])
    assert recipe.sources == (f"{tmp_path}/a", "/home/someone/b", "s3://bucket/c", "/e")
    assert recipe.output == f"{tmp_path}/out"


def test_the_home_folder_is_written_out_in_every_path(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    path = write("all.yaml", FULL)
    paths = [
        *("output=~/run", "dataset.sources=[~/a, ~/b.tar]", "evaluation.photos=~/held-out"),
        "dataset.codec={kind: autoencoder_kl, source: ~/vae}",
        *("training.checkpoints=~/kept", "training.cache_dir=~/cache"),
        "training.prompts={kind: text_encoders, source: ~/sdxl}",
        "training.stages.warmup.init_from=~/unet",
        "training.stages.warmup.perceptual={kind: lpips, weights: ~/vgg.safetensors}",
    ]
    written = full_recipe(path, paths).model_dump_json()
    assert "~" not in written and written.count("/home/someone/") == 13


def test_the_home_folder_is_written_out_in_a_recipe_that_was_sent() -> None:
    """As by a form of Prefect's pages, whose text no command line has read."""
    values = {"sources": ["~/a"], "output": "/set", "codec": {"kind": "dct8"}}
    assert DatasetRecipe.model_validate(values).sources == (str(Path.home() / "a"),)


def test_one_source_needs_no_brackets() -> None:
    assert dataset_recipe("demo", ["sources=/photos", "output=/set"]).sources == ("/photos",)


def test_a_full_recipe_derives_the_paths_of_its_parts(write: Write) -> None:
    path = write("all.yaml", FULL)
    recipe = full_recipe(path, ["output=/out", "dataset.seed=9", "training.stages.warmup.steps=3"])
    assert recipe.dataset.output == "/out/dataset"
    assert recipe.training.manifest == "/out/dataset/manifest.json"
    assert recipe.training.output == "/out/run"
    assert (recipe.dataset.seed, recipe.training.stages[0].steps) == (9, 3)
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_full_recipe_can_set_its_output_and_be_extended(write: Write) -> None:
    write("all.yaml", f"{FULL}\n    output: /out\n")
    path = write("mine.yaml", "extends: ./all.yaml\ndataset: {seed: 4}")
    recipe = full_recipe(path, {"evaluation.photos": "/others"})
    assert (recipe.output, recipe.dataset.seed) == ("/out", 4)
    assert recipe.evaluation.photos == "/others"


def test_paths_that_stages_and_prompts_start_from_become_absolute(
    write: Write, tmp_path: Path
) -> None:
    path = write("mine.yaml", TRAINING)
    recipe = training_recipe(
        path,
        [
            "manifest=/set",
            "output=/run",
            "stages.warmup.init_from=./old-run",
            "stages.distill.init_from=warmup",
            "prompts={kind: text_encoders, source: ./sdxl}",
            "checkpoints=saved",
        ],
    )
    assert recipe.checkpoints == str(tmp_path / "saved")
    relative = {**recipe.model_dump(mode="json"), "output": "run"}
    assert type(recipe).model_validate(relative).output == "run", "only users' recipes change"
    sources = [stage.init_from for stage in recipe.stages]
    assert sources == [str(tmp_path / "old-run"), "warmup"]
    assert recipe.prompts.model_dump()["source"] == str(tmp_path / "sdxl")
    settings = ["manifest=/set", "output=/run", "stages.warmup.init_from=models:/sr/3"]
    kept = training_recipe(path, [*settings, "prompts={kind: text_encoders, source: owner/sdxl}"])
    assert kept.stages[0].init_from == "models:/sr/3"
    assert kept.prompts.model_dump()["source"] == "owner/sdxl"


def test_a_dataset_without_latents_is_trained_on_by_a_recipe_that_needs_none() -> None:
    assert fitting_recipe(None, preferred="elir-sr8") == "elir-sr8"
    assert fitting_recipe(None, preferred="demo") is None and fitting_recipe(None) is None


@pytest.mark.parametrize("codec", ["dct8", "dct4", "autoencoder_kl", "autoencoder_tiny"])
def test_latents_of_every_codec_have_a_recipe_to_start_with(codec: str) -> None:
    source = {} if codec.startswith("dct") else {"source": "owner/name"}
    changes = {"sources": ["/a"], "output": "/b", "codec": {"kind": codec, **source}}
    recipe = dataset_recipe("realesrgan", changes)
    assert training_recipe(
        fitting_recipe(recipe.codec.kind, preferred="realesrgan"), ["manifest=/a", "output=/b"]
    )
    assert worker_memory(recipe, threads=1) > 0

"""Recipes and settings as they are looked up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.recipes.benchmark_names import bundled_benchmarks
from pipelines.recipes.catalog import Setting, settings_of, summaries, summary
from pipelines.recipes.catalog_report import recipe_described, recipes_listed
from pipelines.recipes.files import bundled_recipes
from pipelines.recipes.overrides import RecipeError

SMALL = "flowmapsr-small"
NAMES = [*bundled_recipes(), *bundled_benchmarks()]


def by_name(recipe: str, section: str) -> dict[str, Setting]:
    return {one.name: one for one in settings_of(recipe) if one.section == section}


def described(recipe: str) -> str:
    """The text on one line, however it was wrapped."""
    lines = recipe_described(summary(recipe), settings_of(recipe)).lines
    return " ".join(" ".join(lines).split())


def test_each_bundled_recipe_says_in_one_line_what_it_is_for() -> None:
    found = summaries()
    assert [one.name for one in found] == NAMES
    for one in found:
        assert 20 < len(one.purpose) <= 80 and one.purpose.endswith("."), one.name
    lines = recipes_listed(found).lines
    assert len(lines) == len(found) + 1
    (line,) = [line for line in lines if line.startswith("realesrgan ")]
    assert "x4 super-resolution" in line and line.endswith("[dataset]")


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_type_and_a_meaning(name: str) -> None:
    found = settings_of(name)
    assert [one.name for one in found if not one.type or not one.meaning] == []
    text = described(name)
    assert all(one.name_in_any_stage in text for one in found)


def test_every_recipe_that_trains_holds_photos_out() -> None:
    trained = [one.name for one in summaries() if "training" in one.sections]
    assert len(trained) >= 6
    for name in trained:
        assert by_name(name, "dataset")["validation_fraction"].value > 0, name


def test_a_setting_has_value_default_type_and_group() -> None:
    training = by_name(SMALL, "training")
    steps = training["stages.distill.steps"]
    assert (steps.value, steps.required, steps.decides) == (5000, True, "correctable")
    rate = training["stages.warmup.learning_rate"]
    assert (rate.value, rate.default, rate.decides) == (2e-4, 4e-5, "correctable")
    assert rate.type == "number, > 0" and rate.meaning.startswith("Learning rate")
    workers = training["workers"]
    assert (workers.decides, workers.given, workers.required) == ("execution", True, False)


def test_what_the_command_line_must_give_has_no_value() -> None:
    missing = [(one.section, one.name) for one in settings_of(SMALL) if not one.given]
    assert missing == [
        *(("dataset", "sources"), ("dataset", "output"), ("training", "manifest")),
        *(("training", "output"), ("evaluation", "photos")),
    ]
    assert all(one.value is None for one in settings_of(SMALL) if not one.given)
    text = described(SMALL)
    assert "manifest = (must be given)" in text
    assert "Next: flowmapsr dataset build flowmapsr-small 'sources=[SOURCES]' output=OUTPUT" in text


def test_settings_inside_settings_follow_the_kind_that_the_recipe_chose() -> None:
    codec = by_name(SMALL, "dataset")
    assert (codec["codec.kind"].value, codec["codec.kind"].default) == ("autoencoder_kl", "dct8")
    assert codec["codec.kind"].type == "`dct8` or `dct4` or `autoencoder_kl` or `autoencoder_tiny`"
    assert codec["codec.batch"].value == 16
    assert "codec.batch" not in by_name("demo", "dataset")
    operations = by_name("elir-sr8", "dataset")["degradation.operations"].value
    assert operations[-1] == {"kind": "resize_back", "modes": ["nearest"]}


def test_what_stages_share_is_written_once() -> None:
    text = described(SMALL)
    assert "stages.NAME.global_batch = 64 Samples" in text
    assert "steps = 8000 in warmup; 5000 in distill; 3000 in guidance; 2000 in adversarial" in text
    assert "stages.NAME.lr_warmup_steps = 200 in warmup, distill, guidance; 0 in adv" in text
    names = [one.partition(" ")[0] for one in text.split("stages.NAME.")[1:]]
    parts = [name.split(".")[0] for name in names]
    assert parts == sorted(parts, key=parts.index), "settings of one part stand together"


def test_a_file_of_ones_own_is_shown_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine.\nextends: demo\ndataset: {samples_per_photo: 3}\n")
    assert summary(str(path)).purpose == "Mine."
    assert by_name(str(path), "dataset")["samples_per_photo"].value == 3
    path.write_text("dataset: {}\n")
    assert summary(str(path)).purpose == "" and described(str(path)).startswith(f"{path} dataset")
    path.write_text("training: {}\n")
    assert not by_name(str(path), "training")["stages.warmup.steps"].given
    path.write_text("evaluation: {scales: [0]}\n")
    with pytest.raises(RecipeError, match=r"scales\.0 = 0"):
        settings_of(str(path))


def test_the_command_lists_shows_and_refuses(invoke: Any) -> None:
    listed = invoke("recipes", "--json").json["recipes"]
    assert {"name": "demo", "sections": ["dataset", "training", "evaluation"]}.items() <= (
        listed[0].items()
    )
    shown = invoke("recipes", "demo", "--json").json
    assert shown["name"] == "demo" and "training" in {one["section"] for one in shown["settings"]}
    assert "stages.NAME.steps = 360 in warmup" in invoke("recipes", "demo").out
    refused = invoke("recipes", "demmo", "--json")
    assert refused.code == 2 and "did you mean 'demo'?" in refused.json["error"]
    unlike = invoke("recipes", "xyz").err
    assert all(name in unlike for name in bundled_recipes()) and "did you mean" not in unlike

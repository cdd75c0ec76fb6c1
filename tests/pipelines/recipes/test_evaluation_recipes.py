"""Settings of evaluations and benchmarks, from options and from recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.recipes.benchmark_names import bundled_benchmarks
from pipelines.recipes.load import (
    benchmark_recipe,
    evaluation_settings,
    full_recipe,
    pair_values,
    training_recipe,
)
from pipelines.terminal.text import yaml_lines
from tests.pipelines.recipes.texts import refusal


def test_evaluation_arguments_are_checked() -> None:
    def read(scales: str, steps: str) -> Any:
        return evaluation_settings(
            photos="/photos", scales=scales.split(","), steps=steps.split(",")
        )

    assert read("4, 8", "1,2").scales == (4.0, 8.0)
    assert "scales.1 = 'x'" in refusal(read, "4,x", "1")
    assert "steps.0 = '0'" in refusal(read, "4", "0")
    assert "give one of photos, pairs, no_reference" in refusal(evaluation_settings, photos=None)
    pairs = pair_values(("LQ=/lr", "hq=/hr"), "_HR,_LR4")
    found = evaluation_settings(pairs=pairs).pairs
    assert found is not None and (found.hq, found.lq, found.match) == ("/hr", "/lr", "suffix")
    assert (found.hq_suffix, found.lq_suffix) == ("_HR", "_LR4")
    table = pair_values(("HQ=/hr", "LQ=/lr"), "/pairs.csv")
    assert table is not None and table["csv"] == "/pairs.csv"
    assert "leave all but one out" in refusal(evaluation_settings, photos="/photos", pairs=pairs)
    assert "leave scales out" in refusal(evaluation_settings, scales=["4"], pairs=pairs)
    assert "write --pairs HQ=FOLDER LQ=FOLDER" in refusal(pair_values, ("HQ=/a", "/b"), None)
    assert "two ends of names" in refusal(pair_values, ("HQ=/a", "LQ=/b"), "_HR")
    assert "together with --pairs" in refusal(pair_values, None, "_HR,_LR")


@pytest.mark.parametrize("name", bundled_benchmarks())
def test_bundled_benchmarks_are_valid_and_can_be_given_again(name: str, tmp_path: Path) -> None:
    photos = [] if name == "table1" else ["photos=/held-out"]
    recipe = benchmark_recipe(name, ["models=[w 2=/runs/a,/runs/b]", "output=/out", *photos])
    models = [(one.name, one.folder) for one in recipe.models]
    assert models == [("w 2", "/runs/a"), (None, "/runs/b")]
    (tmp_path / "again.yaml").write_text("\n".join(yaml_lines(recipe.model_dump(mode="json"))))
    assert benchmark_recipe(str(tmp_path / "again.yaml")) == recipe


def test_benchmarks_that_cannot_be_are_refused() -> None:
    paths = ["models=[/runs/a]", "output=/out"]
    assert "photos: must be given" in refusal(benchmark_recipe, "table3", paths)
    assert "'table1' has no 'training' section" in refusal(training_recipe, "table1")
    both = [*paths, "photos=/p", "lora_scale=2"]
    assert "lora_scale and lora_scales are both given" in refusal(benchmark_recipe, "table4", both)
    twice = ["models=[/runs/a,/runs/a]", "output=/out", "photos=/p"]
    assert "/runs/a is there twice" in refusal(benchmark_recipe, "table3", twice)
    pairs = benchmark_recipe("table3", [*paths, "pairs={hq: /hq, lq: /lq}"])
    assert pairs.scales is None and pairs.photos is None


def test_a_whole_recipe_takes_pairs_with_their_own_scales() -> None:
    given = {"output": "/out", "dataset.sources": ["/a"]}
    pairs = {"evaluation.pairs.hq": "/hr", "evaluation.pairs.lq": "/lr"}
    found = full_recipe("demo", {**given, **pairs}).evaluation
    assert (found.place, found.scales) == ("/hr and /lr", None)
    assert full_recipe("demo", {**given, "evaluation.no_reference": "/x"}).evaluation.factors == (
        4,
        8,
    )

"""What is wrong with a recipe is told with field, value and fix, in words of this project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipelines.recipes.load import (
    dataset_recipe,
    full_recipe,
    require_sources,
    training_recipe,
    validated,
)
from pipelines.recipes.overrides import RecipeError, with_overrides
from tests.pipelines.recipes.texts import FULL, PATHS, TRAINING, Write, refusal


def test_a_path_that_follows_from_output_cannot_be_set(write: Write) -> None:
    path = write("all.yaml", FULL)
    text = refusal(full_recipe, path, ["output=/out", "dataset.output=/elsewhere"])
    assert "dataset.output" in text and "/elsewhere" in text and "leave" in text


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], ["sources: must be given", "sources=[", "output: must be given"]),
        (
            [*PATHS, "samples_per_foto=3"],
            ["samples_per_foto = 3", "unknown key", "did you mean 'samples_per_photo'?"],
        ),
        ([*PATHS, "samples_per_photo=0"], ["samples_per_photo = 0", "greater than or equal to 1"]),
        ([*PATHS, "seed=x"], ["seed = 'x'", "valid integer"]),
        (
            [*PATHS, "crop=nativ"],
            ["crop = 'nativ'", "'cover', 'native' or 'random'", "did you mean 'native'"],
        ),
        (
            [*PATHS, "codec.kind=dct9"],
            ["codec.kind = 'dct9'", "'autoencoder_kl'", "did you mean 'dct8'"],
        ),
        ([*PATHS, "codec=dct8"], ["codec = 'dct8'", "mapping"]),
        ([*PATHS, "codec.kind=autoencoder_kl"], ["codec.source: must be given"]),
        (
            [*PATHS, "degradation.operations.2.gaussian_sigma=[3, 1]"],
            ["degradation.operations.2.gaussian_sigma = [3, 1]", "above"],
        ),
        (
            [*PATHS, "degradation.operations.3.qualty=[1, 2]"],
            ["operations.3.qualty", "did you mean 'quality'"],
        ),
        ([*PATHS, "buckets.budgets=[{side: 16}]"], ["buckets", "16", "step 32"]),
        (["sources=[]", "output=/set"], ["sources = []", "at least 1"]),
        (
            ["sources=[~nobody-here/x]", "output=/set"],
            ["sources.0 = '~nobody-here/x'", "home folder"],
        ),
        (["sources=[/photos]", "output=7"], ["output = 7", "string"]),
        (["sources=[/photos]", "output="], ["output = None", "set the variable"]),
        (["sources=", "output=/set"], ["sources.0 = None", "set the variable"]),
        (["pairs={hq: /a}", "output=/set"], ["pairs.lq: must be given", "pairs.lq=/path/to/LR"]),
        (
            ["pairs={hq: /a, lq: /b, mach: name}", "output=/set"],
            ["pairs.mach = 'name'", "did you mean 'match'"],
        ),
        (["pairs=[{hq: /a, lq: ''}]", "output=/set"], ["pairs.0.lq = ''", "set the variable"]),
        (["sources=['']", "output=/set"], ["sources.0 = ''", "set the variable"]),
    ],
)
def test_an_error_names_field_value_and_fix(overrides: list[str], parts: list[str]) -> None:
    text = refusal(dataset_recipe, "demo", overrides)
    assert [part for part in parts if part not in text] == []


def test_what_must_be_a_list_comes_with_an_example_of_one() -> None:
    given = re.escape("must be a list, for example pairs=[{hq: /path/to/HR, lq: /path/to/LR}]")
    for value in ("7", "/photos"):
        with pytest.raises(RecipeError, match=f"pairs = .*: {given}"):
            dataset_recipe("demo", [*PATHS, f"pairs={value}"])
    item = "pairs.0 = 7: must be a mapping of settings, for example pairs.0={hq: /path/to/HR, lq: "
    with pytest.raises(RecipeError, match=re.escape(item)):
        dataset_recipe("demo", [*PATHS, "pairs=[7]"])
    stages = "stages = 7: must be a list, for example stages=[{name: warmup, "
    with pytest.raises(RecipeError, match=re.escape(stages)):
        training_recipe("demo", ["manifest=/set", "output=/run", "stages=7"])


def test_errors_in_stages_name_the_stage(write: Write) -> None:
    path = write("t.yaml", TRAINING)
    settings = ["manifest=/m", "output=/run", "stages.distill.steps=0", "stages.warmup.step=3"]
    text = refusal(
        training_recipe, path, [*settings, "stages.distill.objective.time_grid_levles=3"]
    )
    assert "has 3 errors" in text
    assert "stages.distill.steps = 0: must be greater" in text
    assert "stages.warmup.step = 3: unknown key; did you mean 'steps'?" in text
    fault = "stages.distill.objective.time_grid_levles = 3: unknown key"
    assert f"{fault}; did you mean 'time_grid_levels'?" in text


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("workers=two", "workers = 'two': must be a whole number or {min, max}"),
        ("workers=[1]", "workers = [1]: must be a whole number or {min, max}"),
        ("workers=0", "workers = 0: must be greater than or equal to 1"),
        ("workers={min: 2}", "workers.max: must be given"),
        ("workers={min: 2, most: 3}", "workers.most = 3: unknown key; choose from: max, min"),
        ("workers={min: 0, max: 2}", "workers.min = 0: must be greater than or equal to 1"),
        ("workers={min: 3, max: 2}", "workers: min 3 is larger than max 2"),
    ],
)
def test_a_choice_of_types_is_explained_in_one_line(write: Write, setting: str, line: str) -> None:
    path = write("t.yaml", TRAINING)
    text = refusal(training_recipe, path, ["manifest=/m", "output=/run", setting])
    assert f"\n  {line}" in text
    for internal in ("constrained", "function", "WorkerRange", "_check", "workers.workers"):
        assert internal not in text


INTERNALS = re.compile(
    r"function-|constrained|tagged-union|Input should|instance of|literal\[|list\[|tuple\[|dict\["
    r"|nullable|is-instance|Settings\b|BaseModel|validation_error|\bnone\b ="
)


def _paths(values: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of all settings, with an index for the items of lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield f"{path}{key}"
        if isinstance(value, dict | list):
            yield from _paths(value, f"{path}{key}.")


@pytest.mark.parametrize("value", ["word", 1.5, -1, [1], ["word"], {"other": 1}, None, True])
@pytest.mark.parametrize(
    "recipe",
    [
        dataset_recipe("realesrgan", PATHS),
        training_recipe("flowmapsr-paper", ["manifest=/m", "output=/run"]),
    ],
    ids=["dataset", "training"],
)
def test_no_message_uses_words_of_pydantic(recipe: BaseModel, value: Any) -> None:
    values = recipe.model_dump(mode="json")
    messages = []
    for path in _paths(values):
        try:
            validated(type(recipe), with_overrides(values, {path: value}), title="any")
        except RecipeError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert [text for text in messages if INTERNALS.search(text)] == []


def test_a_choice_of_a_number_or_a_word_is_explained_in_one_line() -> None:
    text = refusal(dataset_recipe, "demo", [*PATHS, "workers=two"])
    assert text.endswith("has 1 error:\n  workers = 'two': must be a whole number or 'auto'")


def test_errors_across_fields_are_reported(write: Write) -> None:
    path = write("t.yaml", TRAINING)
    text = refusal(training_recipe, path, ["manifest=/m", "output=/run", "workers=9"])
    assert "global_batch 8 is less than" in text and "9" in text


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("missing.yaml", None, ["missing.yaml", "does not exist", "demo"]),
        ("bad.yaml", "seed: 1\nbuckets: [1,\n", ["bad.yaml", "line 3"]),
        ("tab.yaml", "seed:\n\t- 1\n", ["tab.yaml", "line 2"]),
        (
            "twice.yaml",
            "seed: 1\nworkers: 2\nseed: 3\n",
            ["twice.yaml", "line 3", "duplicate key 'seed'"],
        ),
        ("list.yaml", "- 1\n- 2\n", ["list.yaml", "key: value"]),
        ("code.yaml", "seed: !!python/object/apply:os.getcwd []\n", ["code.yaml", "line 1"]),
        ("loop.yaml", "extends: ./loop.yaml\n", ["loop.yaml -> ", "loop"]),
        ("base.yaml", "extends: demoo\n", ["extends = 'demoo'", "did you mean 'demo'?"]),
        ("many.yaml", "extends: [demo]\n", ["extends = ['demo']", "one recipe"]),
        ("part.yaml", "training: {seed: 1}\n", ["part.yaml", "no 'dataset' section", "training"]),
        ("typo.yaml", "dataset: {}\ntrainin: {}\n", ["trainin", "did you mean 'training'?"]),
        ("empty.yaml", "", ["no 'dataset' section", "none"]),
        ("bare.yaml", "dataset:\n", ["sources: must be given"]),
        ("text.yaml", "dataset: photos\n", ["text.yaml", "dataset is 'photos'", "key: value"]),
        (
            "flat.yaml",
            "sources: []\n",
            ["flat.yaml", "unknown key 'sources'", "'training:'"],
        ),
    ],
)
def test_a_wrong_file_is_refused(
    write: Write, name: str, text: str | None, parts: list[str]
) -> None:
    if text is not None:
        write(name, text)
    message = refusal(dataset_recipe, f"./{name}")
    assert [part for part in parts if part not in message] == []


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    assert "did you mean 'demo'?" in refusal(dataset_recipe, "demoo", PATHS)


def test_a_full_recipe_needs_all_sections(write: Write) -> None:
    path = write("one.yaml", "dataset: {seed: 5}")
    assert "no 'training' section; its sections: dataset" in refusal(full_recipe, path)


def test_a_missing_source_is_refused_before_anything_starts(tmp_path: Path) -> None:
    recipe = dataset_recipe("demo", {"sources": [str(tmp_path / "none")], "output": "/set"})
    assert f"sources: {tmp_path}/none does not exist" in refusal(require_sources, recipe)


def test_an_adversarial_stage_before_anything_is_trained_is_refused(write: Write) -> None:
    stages = """
        training:
          stages:
            - name: gan
              objective: {kind: self_distillation}
              steps: 1000
              dynamic_weighting: false
              adversarial: {}
    """
    path = write("mine.yaml", stages)
    text = refusal(training_recipe, path, ["manifest=/set", "output=/run"])
    assert "'gan' is adversarial" in text and "Put a self_distillation stage before it" in text
    wrong = "stages.gan.adversarial.lora.ranks=3"
    text = refusal(training_recipe, path, ["manifest=/set", "output=/run", wrong])
    assert "stages.gan.adversarial.lora.ranks = 3: unknown key; did you mean 'rank'?" in text


def test_a_strength_for_a_lora_that_is_never_trained_is_refused(write: Write) -> None:
    path = write("mine.yaml", FULL)
    text = refusal(full_recipe, path, ["output=/out", "evaluation.lora_scale=1.0"])
    assert "evaluation.lora_scale is given, but the last stage, 'warmup', trains no LoRA" in text

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from datagen.build.memory import worker_memory
from datagen.settings import DatasetRecipe
from pipelines.recipes.benchmark_names import bundled_benchmarks
from pipelines.recipes.files import BUNDLED, bundled_recipes, purpose
from pipelines.recipes.load import (
    benchmark_recipe,
    dataset_recipe,
    evaluation_settings,
    fitting_recipe,
    full_recipe,
    pair_values,
    require_sources,
    training_recipe,
    validated,
)
from pipelines.recipes.overrides import RecipeError, with_overrides
from pipelines.terminal.text import yaml_lines

Write = Callable[..., str]
PATHS = ["sources=[/photos]", "output=/set"]
TRAINING = """
    training:
      stages:
        - {name: warmup, objective: {kind: flow_matching}, steps: 10, global_batch: 8}
        - {name: distill, objective: {kind: self_distillation}, steps: 20, global_batch: 8}
"""
FULL = """
    dataset: {sources: [/photos], seed: 3}
    training:
      stages: [{name: warmup, objective: {kind: flow_matching}, steps: 10, global_batch: 8}]
    evaluation: {photos: /held-out}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe file into the working folder and gives its path."""
    monkeypatch.chdir(tmp_path)

    def to(name: str, text: str) -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return f"./{name}"

    return to


def refusal(read: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(RecipeError) as error:
        read(*arguments, **named)
    assert error.value.exit_code == 2
    return str(error.value)


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

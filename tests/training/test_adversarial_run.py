"""An adversarial stage under `torchrun`: what it leaves, kill -9, convergence, LoRA strength."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

from datagen.errors import FlowmapsrError
from pipelines.cli import app
from tests.support.eventually import eventually
from tests.support.launch import start_workers, train
from tests.support.mlflow_runs import mlflow_names
from tests.support.processes import kill_tree
from tests.support.tiny import STAGE, RunMaker, weights, write_photos
from training.checkpoints.reader import open_checkpoint, read_commit
from training.flowmap.model_folder import FlowMapConfig, load_net, save_model
from training.flowmap.prompts import PROMPTS_FILE, read_prompts
from training.inference.upscaler import Upscaler
from training.settings.recipe import TrainingRecipe
from training.tracking.summary.status import run_status
from training.weights.model_folder import find_model, load_config

STEPS = 24
GanMaker = Callable[..., TrainingRecipe]


def _stage(source: str, **adversarial: Any) -> dict[str, Any]:
    """A stage whose window is never full, so that it runs to its last step."""
    return {
        "name": "gan",
        **STAGE,
        "objective": {"kind": "self_distillation", "time_grid_levels": 2},
        "steps": STEPS,
        "checkpoint_every_steps": 4,
        "ema_decay": 0.5,
        "dynamic_weighting": False,
        "init_from": source,
        "adversarial": {
            "lora": {"rank": 4, "target_modules": ["conv1", "conv2"]},
            "discriminator": {
                "channels": [8, 8],
                "strides": [1, 1, 1],
                "norm_groups": 4,
                "warmup_steps": 4,
            },
            "convergence": {"window": STEPS},
            **adversarial,
        },
    }


@pytest.fixture(scope="module")
def gan_recipe(undisturbed: TrainingRecipe, run_recipe: RunMaker) -> GanMaker:
    """`gan_recipe(folder)`: an adversarial stage on the model of a finished run."""

    def make(folder: Path, **adversarial: Any) -> TrainingRecipe:
        return run_recipe(folder / "run", stages=[_stage(undisturbed.output, **adversarial)])

    return make


@pytest.fixture(scope="module")
def gan(gan_recipe: GanMaker, tmp_path_factory: pytest.TempPathFactory) -> TrainingRecipe:
    """A finished adversarial run."""
    folder = tmp_path_factory.mktemp("gan")
    recipe = gan_recipe(folder)
    train(recipe, folder)
    return recipe


def _home(recipe: TrainingRecipe) -> Path:
    return Path(recipe.output) / "stages" / "gan"


def _lora(recipe: TrainingRecipe) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(_home(recipe) / "model" / "lora.safetensors")


def test_the_base_stays_and_only_the_lora_is_trained(
    gan: TrainingRecipe, undisturbed: TrainingRecipe
) -> None:
    base, source = weights(gan, "gan"), weights(undisturbed, "distill")
    assert base.keys() == source.keys()
    assert all(torch.equal(base[name], source[name]) for name in base)
    lora = _lora(gan)
    ups = [tensor for name, tensor in lora.items() if name.endswith("lora_B.weight")]
    downs = [tensor for name, tensor in lora.items() if name.endswith("lora_A.weight")]
    assert len(ups) == len(downs) == len(lora) / 2 > 0
    assert all(down.shape[0] == 4 for down in downs)
    assert all(bool(up.any()) for up in ups)  # B starts at zero


def test_the_model_is_made_of_the_averages_where_the_stage_keeps_them(gan: TrainingRecipe) -> None:
    folder = str(_home(gan) / "checkpoints" / f"step-{STEPS:06d}")
    lora = _lora(gan)
    with open_checkpoint(folder, read_commit(folder)) as saved:
        pieces = saved.network("generator")
        for name, tensor in lora.items():
            trained = f"net.{name}".replace(".weight", ".default.weight")
            whole = {"start": 0, "stop": tensor.numel(), "numel": tensor.numel()}
            assert torch.equal(tensor.flatten(), pieces.read("average", trained, **whole))
            assert not torch.equal(tensor.flatten(), pieces.read("master", trained, **whole))


def test_scores_and_losses_are_reported_under_their_names(gan: TrainingRecipe) -> None:
    lines = [
        line
        for name in ("tracking.jsonl", "files.jsonl")
        for line in (_home(gan) / name).read_text().splitlines()
    ]
    events = [json.loads(line) for line in lines]
    values = [event["values"] for event in events if event["kind"] == "metrics"]
    metrics = [one for one in values if "perf/images_per_second" in one]  # else the machine's
    for one in metrics:
        for name in ("discriminator", "generator", "real_score", "fake_score"):
            assert math.isfinite(one[f"gan/{name}"])
    assert {"loss/total", "loss/fm", "loss/sd"} <= metrics[-1].keys()
    artifacts = [Path(event["path"]).name for event in events if event["kind"] == "artifact"]
    assert "initialization.txt" in artifacts
    table = (_home(gan) / "initialization.txt").read_text()
    assert "unet.conv_in.weight" in table and "\nnew " not in table.split("\n\n")[1]
    tags = next(event["values"] for event in events if event["kind"] == "tags")
    assert tags["initialized_from"] == gan.stages[0].init_from


@pytest.mark.timeout(600)
def test_an_adversarial_run_that_is_trained_further_and_killed_makes_the_bit_identical_model(
    gan: TrainingRecipe, gan_recipe: GanMaker, tmp_path: Path
) -> None:
    recipe = gan_recipe(tmp_path)
    short = recipe.stages[0].model_copy(update={"steps": 8})
    train(recipe.model_copy(update={"stages": (short,)}), tmp_path)
    assert json.loads((_home(recipe) / "done.json").read_text())["steps"] == 8
    process = start_workers(recipe, tmp_path)
    eventually((_home(recipe) / "checkpoints" / "step-000012").exists, process)
    kill_tree(process)
    process.communicate(timeout=100)
    assert not (_home(recipe) / "done.json").exists()
    train(recipe, tmp_path)
    mine, theirs = _lora(recipe), _lora(gan)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    # The scores of every step since the warm-up: equal only if the discriminator resumed exactly.
    scores = [json.loads(_saved(r, "scores.json")[0]) for r in (recipe, gan)]
    assert scores[0] == scores[1] and len(scores[0]["real"]) == STEPS - 4
    discriminators = [_saved(r, "discriminator") for r in (recipe, gan)]
    assert discriminators[0] == discriminators[1] and len(discriminators[0]) == 2


def _saved(recipe: TrainingRecipe, part: str) -> list[bytes]:
    """The files of a part of the last checkpoint, by their writers."""
    folder = _home(recipe) / "checkpoints" / f"step-{STEPS:06d}"
    files = read_commit(str(folder)).files
    return [(folder / file.name).read_bytes() for file in files if file.part == part]


def test_a_stage_whose_discriminator_learns_nothing_takes_all_steps_and_says_so(
    gan_recipe: GanMaker, tmp_path: Path
) -> None:
    recipe = gan_recipe(tmp_path, convergence={"window": 3, "tolerance": 1e6})
    process = start_workers(recipe, tmp_path)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    record = json.loads((_home(recipe) / "done.json").read_text())
    assert record["steps"] == STEPS
    why = record["ended"]
    assert why.startswith(f"all {STEPS} steps; no early end: the real score leads by ")
    assert why.endswith("never led by 1e+06: the discriminator learns nothing")
    assert f"gan: {why}\n" in output
    (stage,) = run_status(Path(recipe.output)).stages
    assert stage.ended == why
    assert f"| ended | {why} |" in (Path(recipe.output) / "stages.md").read_text()
    run = mlflow_names(recipe.output).stages["gan"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(run).data.tags["ended"] == why


def test_the_stage_ends_when_the_scores_have_met_and_says_so(
    gan: TrainingRecipe, gan_recipe: GanMaker, tmp_path: Path
) -> None:
    """Of the same steps, those where the lead falls below a tolerance that it exceeded before."""
    saved = json.loads(_saved(gan, "scores.json")[0])
    leads = [real - fake for real, fake in zip(saved["real"], saved["fake"], strict=True)]
    first = next(i for i, lead in enumerate(leads) if lead > abs(leads[i + 1]))
    tolerance = (leads[first] + abs(leads[first + 1])) / 2
    apart = next(i for i, lead in enumerate(leads) if lead > tolerance)
    met = next(i for i in range(apart, len(leads)) if abs(leads[i]) <= tolerance)
    recipe = gan_recipe(tmp_path, convergence={"window": 1, "tolerance": tolerance})
    train(recipe, tmp_path)
    end = 4 + met + 1  # after the warm-up
    record = json.loads((_home(recipe) / "done.json").read_text())
    assert (record["steps"], record["images_seen"]) == (end, 4 * end)
    assert record["ended"].startswith(f"converged at step {end} of {STEPS}: the real score leads")
    assert (_home(recipe) / "checkpoints" / f"step-{end:06d}").is_dir()
    assert (_home(recipe) / "images" / f"pictures-photo_1-{end:06d}.png").is_file()


def test_the_loras_strength_is_chosen_at_inference(gan: TrainingRecipe) -> None:
    """W + scale * B A for every layer with LoRA, the base for all others."""
    folder = find_model(gan.output)
    config, cpu = load_config(folder, FlowMapConfig), torch.device("cpu")
    assert config.lora is not None and config.lora.scale == 1.5
    base, lora = weights(gan, "gan"), _lora(gan)
    for scale in (None, 0.0, 0.5):
        net = load_net(folder, config, cpu, lora_scale=scale)
        strength = 1.5 if scale is None else scale
        for name, tensor in net.state_dict().items():
            layer = name.removesuffix(".weight")
            expected = base[name]
            if f"{layer}.lora_A.weight" in lora:
                down, up = lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"]
                product = torch.einsum("orxy,rikl->oikl", up, down)
                expected = expected + strength * product
            torch.testing.assert_close(tensor, expected)


def test_a_model_with_its_lora_merged_is_the_model_at_that_strength(
    gan: TrainingRecipe, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    folder = find_model(gan.output)
    config = load_config(folder, FlowMapConfig)
    net = load_net(folder, config, torch.device("cpu"), lora_scale=0.7)
    without = config.model_copy(update={"lora": None})
    save_model(tmp_path / "merged", net, without, prompts=read_prompts(folder / PROMPTS_FILE))
    merged = Upscaler.from_pretrained(tmp_path / "merged").upscale(image, scale=2, steps=2)
    chosen = Upscaler.from_pretrained(gan.output, lora_scale=0.7)
    assert np.array_equal(merged, chosen.upscale(image, scale=2, steps=2))
    assert not (tmp_path / "merged" / "lora.safetensors").exists()
    with pytest.raises(FlowmapsrError, match="no LoRA, so there is no lora scale"):
        Upscaler.from_pretrained(tmp_path / "merged", lora_scale=1.0)


def test_the_command_line_takes_the_strength(gan: TrainingRecipe, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    results = []
    for number, strength in enumerate((["--lora-scale", "0"], ["--lora-scale", "60"], [])):
        target = tmp_path / f"{number}.png"
        words = ["upscale", str(photos / "0.png"), "-o", str(target), "--scale", "1"]
        done = CliRunner().invoke(app, [*words, "--model", gan.output, *strength])
        assert done.exit_code == 0, done.output
        results.append(target.read_bytes())
    assert len(set(results)) == 3
    words = ["evaluate", gan.output, "--photos", str(photos), "--scales", "2", "--steps", "1"]
    rows = []
    for strength in ("0", "60"):
        done = CliRunner().invoke(app, [*words, "--json", "--lora-scale", strength])
        assert done.exit_code == 0, done.output
        rows.append(json.loads(done.stdout)["rows"][1]["psnr"])
    assert rows[0] != rows[1]

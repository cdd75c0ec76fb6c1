"""What recipe and dataset together refuse before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from tests.tiny import DISTILL, WARMUP, RunMaker
from training.preflight import check_run

DISCRIMINATOR = {"channels": [8, 8], "strides": [1, 1, 1], "norm_groups": 4, "warmup_steps": 2}


def _stages(*, targets: list[str], discriminator: dict[str, Any]) -> list[dict[str, Any]]:
    adversarial = {"lora": {"target_modules": targets}, "discriminator": discriminator}
    gan = {**DISTILL, "name": "gan", "dynamic_weighting": False, "adversarial": adversarial}
    return [WARMUP, DISTILL, gan]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("conv3", "'conv3' is no linear or convolutional layer.*near it: conv"),
        ("to_q", "'to_q' is no linear or convolutional layer.*choose from conv, conv1"),
        ("resnets", "'resnets' is no linear or convolutional layer"),
    ],
)
def test_lora_names_that_match_nothing_are_refused_with_the_near_ones(
    run_recipe: RunMaker, tmp_path: Path, target: str, message: str
) -> None:
    stages = _stages(targets=["conv1", target], discriminator=DISCRIMINATOR)
    with pytest.raises(FlowmapsrError, match=message):
        check_run(run_recipe(tmp_path / "run", stages=stages))


def test_latents_that_leave_no_patch_are_refused_with_the_setting(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = _stages(targets=["conv1"], discriminator=DISCRIMINATOR)
    check_run(run_recipe(tmp_path / "run", stages=stages))
    stages = _stages(targets=["conv1"], discriminator={**DISCRIMINATOR, "strides": [2, 1, 1]})
    with pytest.raises(
        FlowmapsrError, match=r"strides \[2, 1, 1\].*32x32, whose shorter side is 4"
    ):
        check_run(run_recipe(tmp_path / "run", stages=stages))


def test_missing_sources_are_named_unless_their_stage_is_finished(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = [{**WARMUP, "initialise_from": str(tmp_path / "gone")}]
    recipe = run_recipe(tmp_path / "run", stages=stages)
    with pytest.raises(
        FlowmapsrError, match=r"stage 'warmup': initialise_from: there is no .*gone"
    ):
        check_run(recipe)
    done = tmp_path / "run" / "stages" / "warmup" / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text(
        '{"stage": "warmup", "steps": 1, "images_seen": 1, "recipe_digest": "",'
        ' "dataset_digest": "", "model": "stages/warmup/model"}'
    )
    check_run(recipe)


def test_a_missing_folder_of_text_encoders_is_named(run_recipe: RunMaker, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    prompts = {"kind": "text_encoders", "source": "./nowhere"}
    recipe = type(recipe).model_validate({**recipe.model_dump(), "prompts": prompts})
    with pytest.raises(FlowmapsrError, match=r"prompts\.source: there is no \./nowhere"):
        check_run(recipe)


def test_a_run_that_cannot_end_does_not_begin(run_recipe: RunMaker, tmp_path: Path) -> None:
    stages = _stages(targets=["nothing"], discriminator=DISCRIMINATOR)
    path = tmp_path / "recipe.json"
    path.write_text(run_recipe(tmp_path / "run", stages=stages).model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "training.run", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "'nothing' is no linear" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()

"""What a training recipe refuses when it is read, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.settings import StageSettings, TrainingRecipe
from training.trainers import learning_rate

STAGE = {"name": "warmup", "objective": {"kind": "flow_matching"}, "steps": 100}

DISTILL = {**STAGE, "name": "distill", "objective": {"kind": "self_distillation"}}
GAN = {
    **DISTILL,
    "name": "gan",
    "steps": 1000,
    "dynamic_weighting": False,
    "adversarial": {},
}


def _recipe(**values: Any) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {"manifest": "/data", "output": "/run", "stages": [STAGE], **values}
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "s3://bucket/run"}, "local folder"),
        ({"workers": 3}, "global_batch 256 is not a multiple of micro_batch 8 x workers 3 = 24"),
        ({"stages": [STAGE, STAGE]}, "stage names must differ"),
        ({"stages": [{**STAGE, "name": "Warm up"}]}, "may hold only"),
        ({"stages": [{**STAGE, "steps": 0}]}, "greater than or equal to 1"),
        ({"stages": [{**STAGE, "perceptual": {"kind": "lpips"}}]}, "weights"),
        ({"model": {"block_channels": [64]}}, "transformer_layers needs 1 values"),
        ({"model": {"norm_groups": 48}}, "must be divisible"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(**values)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([GAN], "'gan' is adversarial.*nothing before it learns steps.*self_distillation"),
        ([STAGE, GAN], "'gan' is adversarial.*nothing before it learns steps"),
        ([STAGE, {**GAN, "dynamic_weighting": True}], "set dynamic_weighting to false"),
        ([STAGE, DISTILL, {**GAN, "zero_stage": 3}], "zero_stage"),
        ([STAGE, DISTILL, {**GAN, "steps": 500}], "leave none for the generator after .* 500"),
        (
            [STAGE, DISTILL, {**GAN, "initialise_from": "distil"}],
            "initialise_from 'distil' is no earlier stage .did you mean 'distill'",
        ),
        ([{**STAGE, "initialise_from": "warmup"}], "no earlier stage .earlier: none"),
        ([{**STAGE, "initialise_from": "models:/m@best"}], "the version's number"),
        ([{**STAGE, "initialise_from": "models:/m"}], "the version's number"),
        ([{**STAGE, "initialise_from": "s3://bucket/model"}], "give a local place"),
        ([{**STAGE, "initialise_from": "My Model"}], "give the name of an earlier stage"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(
    stages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(stages=stages)


def test_a_stage_starts_from_the_one_before_unless_told() -> None:
    again = {**DISTILL, "name": "again", "initialise_from": "warmup"}
    recipe = _recipe(stages=[STAGE, DISTILL, again, {**GAN, "initialise_from": "/runs/other"}])
    names = [stage.name for stage in recipe.stages]
    assert [recipe.origin(name) for name in names] == [None, "warmup", "warmup", "/runs/other"]
    _recipe(stages=[STAGE, DISTILL, GAN])
    _recipe(stages=[{**GAN, "initialise_from": "models:/flowmapsr/3"}])


def test_the_digest_ignores_only_the_place() -> None:
    assert _recipe().digest() == _recipe(output="/elsewhere").digest()
    assert _recipe().digest() != _recipe(seed=1).digest()


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    stage = StageSettings.model_validate(
        {
            **STAGE,
            "learning_rate": 1.0,
            "learning_rate_warmup": 9,
            "final_learning_rate_fraction": 0.1,
        }
    )
    assert learning_rate(stage, 0) == pytest.approx(0.1)
    assert learning_rate(stage, 50) == pytest.approx(0.55)
    assert learning_rate(stage, 100) == pytest.approx(0.1)
    constant = StageSettings.model_validate({**STAGE, "learning_rate": 2.0})
    assert {learning_rate(constant, step) for step in (0, 50, 100)} == {2.0}

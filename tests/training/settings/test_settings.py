"""What a training recipe refuses when it is read, and the values derived from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from training.settings.model import ModelSettings
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings, learning_rate

STAGE = {"name": "warmup", "objective": {"kind": "flow_matching"}, "steps": 100}


def _distill(
    formulation: str,
    *,
    guidance: dict[str, Any] | None = None,
    **stage: Any,
) -> dict[str, Any]:
    objective = {
        "kind": "self_distillation",
        "formulation": formulation,
        "guidance": guidance,
    }
    return {**STAGE, "objective": objective, **stage}


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


def _sources(*weights: float | None) -> dict[str, Any]:
    """Mixed datasets, of which `manifest` names the first."""
    sources = [{"uri": f"/data{i or ''}", "weight": weight} for i, weight in enumerate(weights)]
    return {"sources": sources}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "s3://bucket/run"}, "local folder"),
        (
            {"workers": 257},
            "'warmup'.*global_batch 256 is less than workers 257.*raise global_batch",
        ),
        ({"workers": {"min": 1, "max": 300}}, "global_batch 256 is less than workers 300"),
        ({"stages": [STAGE, STAGE]}, "stage names must differ"),
        ({"stages": [{**STAGE, "name": "Warm up"}]}, "may hold only"),
        (
            {"stages": [_distill("eulerian", compile="all")]},
            "compile=all.*cannot go through a compiled network: set compile=student",
        ),
        ({"stages": [{**STAGE, "zero_stage": 3, "compile": "student"}]}, "spreads them"),
        ({"checkpoints": "gs://bucket/run"}, "a local folder or an s3:// address"),
        ({"stages": [{**STAGE, "offload": "optimizer", "zero_stage": 0}]}, "zero_stage of 1, 2 or"),
        (
            {"stages": [{**STAGE, "keep_every_steps": 750}]},
            "not a multiple of checkpoint_every_steps 500",
        ),
        ({"stages": [_distill("shortcut", guidance={"strength": [3, 1]})]}, "lower bound"),
        ({"model": {"block_channels": [64]}}, "transformer_layers needs 1 values"),
        ({"model": {"norm_groups": 48}}, "must be divisible"),
        (_sources(0, 0), "sources: the weights 0, 0 sum to nothing.*raise at least one"),
        (_sources(1, 0), "sources.1.weight is 0: /data1 would give no sample; leave it out"),
        (_sources(1, -1), "sources.1.weight"),
        (_sources(math.nan, 1), "sources.0.weight\n.*finite"),
        (_sources(1, None), "sources.1.weight: /data1 has none.*give all of them a weight"),
        ({**_sources(1, 1), "manifest": "/other"}, "manifest=/other is not the first of sources"),
        (
            {"stages": [{**STAGE, "keep_best": "val/lpips_alex_x4_nfe1"}]},
            r"'warmup' watches val/lpips_alex.*set validation.metrics=\[lpips_alex\]",
        ),
        ({"validation": {"metrics": ["fid_whole"]}}, "fid_whole compares sets.*flowmapsr evaluate"),
        ({"validation": {"metrics": ["psnr_rgb"]}}, "always measured, as val/psnr_nfe1"),
        ({"validation": {"every": 0}}, "greater than or equal to 1"),
    ],
)
def test_an_invalid_recipe_is_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(**values)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([GAN], "'gan' is adversarial.*nothing before it learns steps.*self_distillation"),
        ([STAGE, GAN], "'gan' is adversarial.*nothing before it learns steps"),
        ([STAGE, {**GAN, "dynamic_weighting": True}], "set dynamic_weighting to false"),
        ([STAGE, DISTILL, {**GAN, "zero_stage": 3}], "needs zero_stage 2 or less"),
        ([STAGE, DISTILL, {**GAN, "steps": 500}], "leave none for the generator after .* 500"),
        (
            [STAGE, DISTILL, {**GAN, "init_from": "distil"}],
            "init_from 'distil' is no earlier stage .did you mean 'distill'",
        ),
        ([{**STAGE, "init_from": "warmup"}], "no earlier stage .earlier: none"),
        ([{**STAGE, "init_from": "models:/m@best"}], "the version's number"),
        ([{**STAGE, "init_from": "models:/m"}], "the version's number"),
        ([{**STAGE, "init_from": "s3://bucket/model"}], "give a local path"),
        ([{**STAGE, "init_from": "My Model"}], "give the name of an earlier stage"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(
    stages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(stages=stages)


def test_a_stage_starts_from_the_one_before_unless_init_from_is_given() -> None:
    again = {**DISTILL, "name": "again", "init_from": "warmup"}
    recipe = _recipe(stages=[STAGE, DISTILL, again, {**GAN, "init_from": "/runs/other"}])
    sources = [recipe.initial_weights_of(stage.name) for stage in recipe.stages]
    assert sources == [None, "warmup", "warmup", "/runs/other"]
    _recipe(stages=[STAGE, DISTILL, GAN])
    _recipe(stages=[{**GAN, "init_from": "models:/flowmapsr/3"}])


@pytest.mark.parametrize("workers", [3, 7, 32, {"min": 8, "max": 16}])
def test_a_number_of_workers_need_not_divide_the_global_batch(workers: Any) -> None:
    """In `test_schedule` each sample has the same weight in the mean for any number of workers."""
    budgets = [{"side": 256, "probability": 1, "micro_batch": 32}]
    _recipe(workers=workers)
    _recipe(workers=workers, stages=[{**STAGE, "budgets": budgets}])


@pytest.mark.parametrize(
    "stage",
    [
        _distill("shortcut", zero_stage=3),
        _distill("shortcut", compile="all"),
        _distill("eulerian", compile="student", zero_stage=2),
        _distill("lagrangian", zero_stage=3),
    ],
)
def test_valid_combinations_are_allowed(stage: dict[str, Any]) -> None:
    assert _recipe(stages=[stage]).stages[0].zero_stage == stage.get("zero_stage", 1)


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    stage = StageSettings.model_validate(
        {
            **STAGE,
            "learning_rate": 1.0,
            "lr_warmup_steps": 9,
            "lr_final_fraction": 0.1,
        }
    )
    assert learning_rate(stage, 0) == pytest.approx(0.1)
    assert learning_rate(stage, 50) == pytest.approx(0.55)
    assert learning_rate(stage, 100) == pytest.approx(0.1)
    constant = StageSettings.model_validate({**STAGE, "learning_rate": 2.0})
    assert {learning_rate(constant, step) for step in (0, 50, 100)} == {2.0}


def test_a_network_of_an_earlier_version_is_read_by_its_old_names() -> None:
    """`config.json` of a model folder keeps the names that it was written with."""
    old = ModelSettings.model_validate({"guidance_input": False, "time_scale": 1.0})
    assert (old.guidance_conditioning, old.time_embedding_scale) == (False, 1.0)
    assert "time_scale" not in old.model_dump()

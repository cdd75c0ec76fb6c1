"""What is refused and warned of in recipes and datasets of ELIR."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from datagen.build.in_process import build_in_process
from datagen.errors import FlowmapsrError
from datagen.settings import BucketSettings, PixelBudget
from tests.support.tiny import RunMaker, dataset_recipe, write_photos
from training.preflight import check_run
from training.settings.recipe import TrainingRecipe

STAGE: dict[str, Any] = {
    "name": "elir",
    "objective": {"kind": "latent_consistency"},
    "steps": 10,
    "global_batch": 4,
    "dynamic_weighting": False,
}


def _recipe(
    *,
    model: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    stage: dict[str, Any] | None = None,
    **values: Any,
) -> TrainingRecipe:
    chosen = {**STAGE, "objective": {**STAGE["objective"], **(objective or {})}, **(stage or {})}
    return TrainingRecipe.model_validate(
        {
            "manifest": "/data",
            "output": "/run",
            "model": {"kind": "elir", **(model or {})},
            "stages": [chosen],
            **values,
        }
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"time_step": 0}}, r"time_step\n.*greater than 0"),
        ({"objective": {"time_step": 1}}, r"time_step\n.*less than 1"),
        ({"objective": {"segments": 0}}, r"segments\n.*greater than or equal to 1"),
        ({"objective": {"beta": 1.5}}, r"beta\n.*less than or equal to 1"),
        ({"objective": {"segments": 1}}, r"beta 0.001 has no effect with segments 1.*set beta=0"),
        ({"objective": {"alpha": -1}}, r"alpha\n.*greater than or equal to 0"),
        ({"objective": {"sigma_s": -0.1}}, r"sigma_s\n.*greater than or equal to 0"),
        ({"objective": {"sigma_min": 1}}, r"sigma_min\n.*less than 1"),
        ({"objective": {"guidance": {}}}, r"guidance\n.*not permitted"),
        ({"model": {"width": 48}}, r"width\n.*multiple of 32"),
        ({"model": {"codec": {"kind": "autoencoder_kl", "source": "/x"}}}, "autoencoder_kl"),
        ({"model": {"parts": "field"}}, "train_encoder=true.*no loss.*set train_encoder=false"),
        ({"stage": {"dynamic_weighting": True}}, "set dynamic_weighting=false"),
        ({"stage": {"perceptual": {"kind": "charbonnier"}}}, "set perceptual.kind=none"),
        ({"stage": {"adversarial": {}}}, "adversarial trains a LoRA of flow maps: leave it out"),
        ({"stage": {"compile": "all"}}, "compile=all.*set false and none"),
        (
            {"stage": {"objective": {"kind": "self_distillation"}}},
            "objective.kind=self_distillation does not train model.kind=elir: set "
            "objective.kind=latent_consistency",
        ),
        ({"stage": {"init_from": "elir:faces"}}, "write one of elir:bfr, elir:sr, "),
        ({"model": {"kind": "flowmap"}}, "does not train model.kind=flowmap.*model.kind=elir"),
        (
            {"prompts": {"kind": "text_encoders", "source": "/encoders"}},
            "prompts condition flow maps.*leave prompts out",
        ),
    ],
)
def test_an_invalid_recipe_is_refused_with_field_value_and_fix(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=re.compile(message)):
        _recipe(**values)


def test_a_time_step_as_long_as_a_segment_is_warned_of() -> None:
    (warning,) = _recipe(objective={"time_step": 0.5}).stages[0].warnings
    assert "time_step 0.5 is as long as one of 3 segments" in warning and "below 0.333" in warning
    assert not _recipe().stages[0].warnings
    assert not _recipe(objective={"time_step": 0.5, "flow": "flow_matching"}).stages[0].warnings


def test_a_recipe_without_a_kind_is_of_a_flow_map(run_recipe: RunMaker, tmp_path: Path) -> None:
    """As those of earlier versions."""
    stage = {**STAGE, "objective": {"kind": "flow_matching"}}
    assert run_recipe(tmp_path / "run", stages=[stage]).model.kind == "flowmap"


@pytest.mark.parametrize(
    ("stored", "side", "message"),
    [
        ({"hq_pixels": "none"}, 32, "its objective needs HQ pixels.*build it with hq_pixels=png"),
        ({}, 40, r"bucket 40x40.*multiples of 4 latents, 32 pixels.*with buckets.step=32$"),
        ({"latents": ()}, 32, ""),
    ],
)
def test_a_dataset_must_store_pixels_at_sides_that_the_field_can_halve(
    tmp_path: Path, stored: dict[str, Any], side: int, message: str
) -> None:
    """It needs no latents."""
    asked = dataset_recipe(write_photos(tmp_path / "photos", 1), tmp_path / "dataset")
    buckets = BucketSettings(budgets=(PixelBudget(side=side),), step=8, max_aspect_ratio=1.0)
    build_in_process(asked.model_copy(update={"buckets": buckets, **stored}))
    recipe = _recipe(manifest=str(tmp_path / "dataset"), output=str(tmp_path / "run"))
    with pytest.raises(FlowmapsrError, match=message) if message else nullcontext():
        check_run(recipe)


def test_published_weights_are_of_elir_alone() -> None:
    stage = {"objective": {"kind": "flow_matching"}, "init_from": "elir:sr"}
    with pytest.raises(ValidationError, match="init_from=elir:sr is of model.kind=elir, not flow"):
        _recipe(model={"kind": "flowmap"}, stage=stage)
    assert _recipe(stage={"init_from": "elir:sr"}).stages[0].init_from == "elir:sr"

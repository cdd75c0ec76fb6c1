"""Pixel budgets of a stage and of a dataset: probabilities, batch sizes, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from datagen.dataset.manifest import Manifest
from datagen.errors import FlowmapsrError
from tests.support.tiny import WARMUP, RunMaker, with_shards
from training.data.bucket_mix import bucket_shares
from training.preflight import check_run
from training.settings.recipe import TrainingRecipe
from training.settings.stage import BatchSize, StageSettings

SMALL = {"side": 256, "probability": 0.6, "global_batch": 32, "micro_batch": 8}
LARGE = {"side": 512, "probability": 0.2}


def _stage(*budgets: dict[str, Any]) -> StageSettings:
    return StageSettings.model_validate({**WARMUP, "budgets": budgets})


@pytest.fixture
def mixed(manifest: Manifest) -> Manifest:
    """Samples of two budgets, the smaller one in two aspect ratios."""
    budgets = [{"side": 256}, {"side": 512}]
    recipe = {**manifest.recipe, "buckets": {"budgets": budgets, "max_aspect_ratio": 2.0}}
    shards = {"256x256_1": 30, "192x352_1": 10, "512x512_1": 5, "512x512_2": 7}
    return with_shards(manifest, **shards).model_copy(update={"recipe": recipe})


def test_budgets_are_drawn_by_probability_and_buckets_by_samples(mixed: Manifest) -> None:
    draws = {draw.bucket: draw for draw in bucket_shares(_stage(SMALL, LARGE), [mixed])}
    chances = {name: draw.probability for name, draw in draws.items()}
    assert chances == pytest.approx(
        {"256x256": 0.75 * 0.75, "192x352": 0.75 * 0.25, "512x512": 0.25}
    )
    assert draws["192x352"].batch == draws["256x256"].batch == BatchSize(32, 8)
    assert draws["512x512"].batch == BatchSize(4, 1)  # the stage's own


def test_without_budgets_buckets_are_drawn_by_samples(mixed: Manifest) -> None:
    draws = bucket_shares(StageSettings.model_validate(WARMUP), [mixed])
    assert {draw.bucket: draw.probability for draw in draws} == pytest.approx(
        {"192x352": 10 / 52, "256x256": 30 / 52, "512x512": 12 / 52}
    )


def test_a_budget_of_probability_0_is_left_out(mixed: Manifest) -> None:
    stage = _stage(SMALL, {**LARGE, "probability": 0, "global_batch": 6, "micro_batch": 4})
    assert {draw.bucket for draw in bucket_shares(stage, [mixed])} == {"192x352", "256x256"}
    assert stage.batch_sizes == (BatchSize(32, 8),) and stage.images_per_step == 32
    assert _stage(SMALL, LARGE).images_per_step == 0.75 * 32 + 0.25 * 4


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            (SMALL, LARGE, {"side": 768, "probability": 1}),
            r"stage 'warmup': budgets: side 768 has no sample in this dataset. It has "
            r"side 256: 40 \(192x352, 256x256\); side 512: 12 \(512x512\)",
        ),
        ((SMALL,), "side 512 is missing.*probability 0"),
        (({"side": 500, "probability": 1}, SMALL), "side 500 has no sample"),
    ],
)
def test_budgets_that_do_not_match_the_dataset_are_refused(
    mixed: Manifest, budgets: tuple[dict[str, Any], ...], message: str
) -> None:
    with pytest.raises(FlowmapsrError, match=message):
        bucket_shares(_stage(*budgets), [mixed])


def test_mismatched_budgets_are_refused_before_training(
    run_recipe: RunMaker, tmp_path: object
) -> None:
    stage = {**WARMUP, "budgets": [{"side": 64, "probability": 1}]}
    with pytest.raises(FlowmapsrError, match="side 64 has no sample.*side 32: 12"):
        check_run(run_recipe(tmp_path, stages=[stage]))


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([SMALL, SMALL], "the sides of budgets must differ: 256, 256"),
        ([{**SMALL, "probability": 0}], "probability of every one of budgets is 0"),
        ([{**SMALL, "probability": 1.5}], "less than or equal to 1"),
        ([], "at least 1 item"),
    ],
)
def test_budgets_that_cannot_work_are_refused_with_the_recipe(
    budgets: list[dict[str, Any]], message: str
) -> None:
    recipe = {
        "manifest": "m",
        "output": "o",
        "workers": 2,
        "stages": [{**WARMUP, "budgets": budgets}],
    }
    with pytest.raises(ValidationError, match=message):
        TrainingRecipe.model_validate(recipe)

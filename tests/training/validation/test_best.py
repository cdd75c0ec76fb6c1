"""Which validation is the best one, and when a stage ends early."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from tests.support.tiny import WARMUP
from training.settings.stage import StageSettings
from training.validation.best import BestSoFar


def _settings(**changes: object) -> StageSettings:
    return StageSettings.model_validate({**WARMUP, **changes})


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("val/psnr_nfe1", [20, 22, math.nan, 21, 22], 2),
        ("val/gain_x4_nfe2", [-1, -0.5, 0.25, 0.2], 3),
        ("val/ssim_nfe4", [0.5, 0.4], 1),
        ("val/loss/fm", [0.3, math.nan, 0.1, 0.2], 3),
        ("val/loss/fm", [math.nan, 0.3], 2),
        ("val/lpips_alex_nfe1", [0.5, 0.4, 0.6], 2),
        ("val/niqe_x4_nfe2", [5, 6], 1),
        ("val/musiq_koniq_nfe1", [50, 60], 2),
    ],
)
def test_the_best_is_the_highest_quality_or_the_least_loss(
    metric: str, values: list[float], best: int
) -> None:
    tracker = BestSoFar(_settings(keep_best=metric))
    improved = [step for step, value in enumerate(values, 1) if tracker.add(step, {metric: value})]
    assert tracker.best is not None and tracker.best.step == best == improved[-1]


def test_a_stage_ends_after_so_many_validations_without_a_new_best_also_when_resumed() -> None:
    settings = _settings(early_stopping={"metric": "val/loss/fm", "patience": 2})
    first = BestSoFar(settings)
    for step, value in ((1, 0.3), (2, 0.2), (3, 0.25)):
        first.add(step, {"val/loss/fm": value})
    assert not first.exhausted
    resumed = BestSoFar(settings)
    resumed.restore(first.found)
    resumed.add(4, {"val/loss/fm": 0.2})
    assert resumed.exhausted and resumed.best is not None and resumed.best.step == 2


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are() -> None:
    tracker = BestSoFar(_settings(keep_best="val/psnr_x16_nfe1"))
    with pytest.raises(FlowmapsrError, match=r"x16_nfe1, which is not.*there are val/psnr_nfe1"):
        tracker.check({"val/psnr_nfe1": 20.0})
    with pytest.raises(FlowmapsrError, match=r"holds nothing out.*validation_fraction"):
        tracker.check({})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_best": "psnr"}, "'psnr' is no held-out metric: give one such as val/psnr"),
        ({"keep_best": "val/speed"}, "'val/speed' is no held-out metric"),
        ({"model_from": "best"}, "model_from=best needs a metric"),
        ({"early_stopping": {"metric": "val/psnr_nfe1", "patience": 0}}, "greater than or equal"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _settings(**changes)

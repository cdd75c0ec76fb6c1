"""What a training recipe refuses when it is read, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.loop import learning_rate
from training.settings import StageSettings, TrainingRecipe

STAGE = {"name": "warmup", "objective": {"kind": "flow_matching"}, "steps": 100}


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

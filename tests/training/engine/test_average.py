"""The moving average of weights, against its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.support.tiny import STAGE
from training.engine.state import EngineState, ema_decay
from training.engine.zero_layout import Fragment
from training.settings.stage import StageSettings


def average_of_rising_weights(updates: int, *, decay: float, warmup: int | None) -> float:
    """Of a weight that is n at update n, from 0."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight])
    part = Fragment("weight", numel=1, start=0, length=1, owner=weight, owner_start=0)
    state = EngineState(nn.Module(), optimizer, (part,), decay=decay, warmup=warmup)
    for n in range(1, updates + 1):
        nn.init.constant_(weight, n)
        state.update_averages()
    return float(state.averages[weight])


@pytest.mark.parametrize("n", [1, 2, 30])
def test_the_average_of_rising_weights_has_the_closed_form(n: int) -> None:
    d = 0.9
    expected = n - d * (1 - d**n) / (1 - d)
    assert average_of_rising_weights(n, decay=d, warmup=None) == pytest.approx(expected, rel=1e-5)


def test_the_decay_rises_with_the_updates() -> None:
    assert ema_decay(1, 0.999, 2000) == pytest.approx(0.999 * (1 - math.exp(-1 / 2000)))
    assert ema_decay(2000, 0.999, 2000) == pytest.approx(0.999 * (1 - 1 / math.e))
    assert ema_decay(10**6, 0.999, 2000) == ema_decay(1, 0.999, None) == 0.999
    first, second = (0.9 * (1 - math.exp(-n / 2)) for n in (1, 2))
    expected = second * (1 - first) * 1 + (1 - second) * 2
    assert average_of_rising_weights(2, decay=0.9, warmup=2) == pytest.approx(expected)


def test_a_warm_up_of_no_average_is_refused() -> None:
    objective = {"kind": "flow_matching"}
    with pytest.raises(ValidationError, match="ema_warmup 2000 .* set ema_decay, such as 0.999"):
        StageSettings.model_validate(
            {**STAGE, "name": "a", "objective": objective, "ema_warmup": 2000}
        )

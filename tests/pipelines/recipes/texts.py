"""Recipes in short, and how one is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.recipes.overrides import RecipeError

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


def refusal(read: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(RecipeError) as error:
        read(*arguments, **named)
    assert error.value.exit_code == 2
    return str(error.value)

"""A finished stage leaves no network in memory while the next one is built."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import training.stage
from tests.support.tiny import WARMUP, RunMaker


class BuiltStage:
    """Refers to itself, as networks, engines and hooks do."""

    def __init__(self) -> None:
        self.itself = self

    def train(self, stop_requested: Callable[[], bool]) -> None:
        """Trains nothing."""


def test_networks_are_released_when_a_stage_returns(
    run_recipe: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref[BuiltStage]] = []

    @contextmanager
    def build(*_: Any) -> Iterator[BuiltStage]:
        stage = BuiltStage()
        built.append(weakref.ref(stage))
        yield stage

    monkeypatch.setattr(training.stage, "build_stage", build)
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    training.stage.run_stage(recipe, "warmup", stop_requested=lambda: False)
    assert [one() for one in built] == [None]

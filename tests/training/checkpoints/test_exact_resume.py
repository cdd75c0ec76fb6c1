"""Training resumed from a checkpoint continues bit for bit, for any number of workers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.launch import found_by
from tests.training.workers.checkpoint_workers import CASES, MOVES, MOVES_TO_ONE, SAVED

EXACT = ["one", *CASES, "gan"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `checkpoint_workers` with one worker, then two, then one."""
    folder = tmp_path_factory.mktemp("exact")
    found: dict[str, Any] = {}
    for launch, workers in enumerate((1, 2, 1)):
        path = folder / f"{launch}.json"
        found |= found_by(
            "tests.training.workers.checkpoint_workers",
            str(folder / "saved"),
            workers=workers,
            results=path,
        )
    assert sorted(found) == sorted([*EXACT, *MOVES, *MOVES_TO_ONE, "one failed writer"])
    return found


@pytest.mark.parametrize("case", EXACT)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    results: dict[str, Any], case: str
) -> None:
    """Losses, weights, masters, moments, averages and buffers, though the trainer was another."""
    result = results[case]
    assert result["restored step"] == SAVED
    assert result["differences"] == []
    assert result["tensors"] > 100 and len(set(result["losses"])) == 2


@pytest.mark.parametrize("case", ["one", *CASES])
def test_the_average_is_that_of_the_weights_of_all_steps(
    results: dict[str, Any], case: str
) -> None:
    """For every part of the weights; without `ema_decay` it is the weights."""
    settings = CASES.get(case, {"ema_decay": 0.9})
    error, distance = results[case]["average's error"], results[case]["average's distance"]
    if "ema_decay" not in settings:
        assert distance == 0
    else:
        assert error < 1e-6 and distance > 1e-4


@pytest.mark.parametrize("move", [*MOVES, *MOVES_TO_ONE])
def test_a_checkpoint_loads_with_other_workers_stage_and_precision(
    results: dict[str, Any], move: str
) -> None:
    """The state is the same bit for bit, and so is the training that follows."""
    source, target = (MOVES | MOVES_TO_ONE)[move]
    result = results[move]
    assert result["same names"] and result["differences"] == []
    tolerance = 2e-2 if "bf16" in source + target else 1e-5
    assert result["losses"] == pytest.approx(results[source]["losses"], rel=tolerance)


@pytest.mark.parametrize("case", EXACT)
def test_a_closed_trainer_leaves_no_tensor_behind(results: dict[str, Any], case: str) -> None:
    """One process trains stage after stage: weights, moments and gradients of the last are gone."""
    assert results[case]["alive"] == []


def test_a_part_that_cannot_be_written_fails_the_checkpoint_of_all_and_nothing_else(
    results: dict[str, Any],
) -> None:
    result = results["one failed writer"]
    first, second = result["problems"]
    assert first == second
    assert "the checkpoint of step 2 could not be written (worker 1: " in first
    assert "File too large" in first and "choose another location" in first
    assert result["left"] == ["step-000001"]
    assert result["then"] == ["step-000001", "step-000003"]

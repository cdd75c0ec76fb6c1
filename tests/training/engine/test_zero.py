"""Two workers under every ZeRO stage make the update of one worker on the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.launch import found_by
from tests.training.workers import zero_update

CASES = [f"zero{stage}-{name}" for stage, name in zero_update.CASES]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `zero_update` for all cases, in one launch of two workers."""
    path = tmp_path_factory.mktemp("zero") / "results.json"
    found = found_by("tests.training.workers.zero_update", workers=2, results=path)
    assert sorted(found) == sorted([*CASES, "zero3 from zero0"])
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_workers_make_the_update_of_one_on_the_whole_batch(
    results: dict[str, Any], case: str
) -> None:
    result = results[case]
    assert result["difference"] < 1e-4 and result["largest_difference"] < 1e-4
    assert result["norms"] == pytest.approx(result["expected_norms"], rel=1e-4)
    # A part of the batch gives another update, so agreement is meaningful.
    assert result["difference_of_a_part"] > 0.5


@pytest.mark.parametrize("formulation", ["eulerian", "lagrangian"])
def test_zero_3_differentiates_as_zero_0_does(results: dict[str, Any], formulation: str) -> None:
    """The weights after four updates, whose targets hold a derivative of the gathered network."""
    assert results["zero3 from zero0"][formulation] < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_is_not_finite_is_detected(results: dict[str, Any], case: str) -> None:
    assert not results[case]["broken_norm_is_finite"]


ENGINE = """
import json, sys, torch
from tests.training.workers.two_engines import stage
from training.engine.engine import Engine
found = {"compiler": "torch._inductor.compile_fx" in sys.modules}
for precision in ("bf16", "fp32"):
    settings = stage(1).model_copy(update={"precision": precision})
    cpu = torch.device("cpu")
    engine = Engine(torch.nn.Linear(3, 3), settings, device=cpu, world_size=1)
    found["compiler"] |= "torch._inductor.compile_fx" in sys.modules
    found[precision] = torch.backends.cudnn.allow_tf32
settings = stage(0).model_copy(update={"precision": "bf16"})
whole = Engine(torch.nn.Linear(3, 3), settings, device=cpu, world_size=1)
found["stepped"] = bool(whole._state.optimizer.state)
found["timer"] = engine._engine.tput_timer.config.enabled
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def started() -> dict[str, bool]:
    """State of a process in which engines of both precisions have started."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ENGINE],
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_an_engine_starts_without_torchs_compiler(started: dict[str, bool]) -> None:
    assert not started["compiler"]


def test_an_engine_does_not_wait_for_the_device_to_time_it(started: dict[str, bool]) -> None:
    assert not started["timer"]


def test_fp32_convolutions_are_fp32_on_a_gpu_too(started: dict[str, bool]) -> None:
    assert started["bf16"] and not started["fp32"]


def test_an_engine_has_taken_no_step_when_it_is_built(started: dict[str, bool]) -> None:
    assert not started["stepped"]

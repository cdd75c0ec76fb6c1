"""Two workers under every ZeRO stage make the update of one worker on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.training.launch import found_by

CASES = [f"zero{stage}-{name}" for stage in range(4) for name in ("shortcut", "eulerian")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `zero_update` found for all cases, in one launch of two workers."""
    path = tmp_path_factory.mktemp("zero") / "results.json"
    found = found_by("tests.training.zero_update", workers=2, results=path)
    assert sorted(found) == sorted(CASES)
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_workers_make_the_update_of_one_on_the_whole_batch(
    results: dict[str, Any], case: str
) -> None:
    result = results[case]
    assert result["difference"] < 1e-4 and result["farthest"] < 1e-4
    assert result["norms"] == pytest.approx(result["expected_norms"], rel=1e-4)
    # A part of the batch makes another update, so that agreement says something.
    assert result["difference_of_a_part"] > 0.5


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_is_not_finite_is_seen(results: dict[str, Any], case: str) -> None:
    assert not results[case]["broken_norm_is_finite"]


ENGINE = """
import sys, torch
from tests.training.two_engines import stage
from training.engine import Engine
Engine(torch.nn.Linear(3, 3), stage(1), device=torch.device("cpu"), world_size=1)
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_an_engine_starts_without_torchs_compiler() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ENGINE],
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "False"

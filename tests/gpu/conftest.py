"""Tests of what a GPU does otherwise than a CPU: `pytest -m gpu tests/gpu` runs them on a GPU, and
all other calls of pytest rehearse most of them on a CPU.

Nothing here may import boto3, moto, MLflow, Ray or Prefect: a machine that is lent for half an hour
has none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """What is compared with the CPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _comparable() -> Iterator[None]:
    """fp32 is fp32, as in an engine of that precision; and a CPU uses one thread."""
    torch.set_num_threads(1)
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, value in zip(kinds, before, strict=True):
        kind.allow_tf32 = value

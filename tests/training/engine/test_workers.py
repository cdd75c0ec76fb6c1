"""The device of a worker on CPU and GPU machines; GPUs are simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datagen.errors import FlowmapsrError
from tests.support.launch import found_by
from training.distributed import worker_device
from training.monitoring.meter import memory_gb, reset_memory_peak
from training.monitoring.watchdog import (
    BEFORE_END_SECONDS,
    FROZEN_SECONDS,
    OTHERS_SECONDS,
    longest_allowance,
)


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.device]:
    """Simulates `count` GPUs; returns the list of devices that are then selected."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_worker_trains_on_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = _gpus(monkeypatch, 2)
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert worker_device() == torch.device("cuda", int(rank))
    assert [device.index for device in chosen] == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(FlowmapsrError, match="has 2 for at least 3 workers.*CUDA_VISIBLE_DEVICES="):
        worker_device()
    assert len(chosen) == 2


def test_the_memory_peak_is_reset_for_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.device("cuda", 0): 30_000_000_000, torch.device("cuda", 1): 20_000_000_000}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({device: 0})
    )
    device = torch.device("cuda", 1)
    assert memory_gb(device) == 20
    reset_memory_peak(device)
    assert memory_gb(device) == 0 and memory_gb(torch.device("cuda", 0)) == 30
    reset_memory_peak(torch.device("cpu"))
    assert memory_gb(torch.device("cpu")) > 0


def test_without_gpus_all_workers_train_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 0)
    monkeypatch.setenv("LOCAL_RANK", "7")
    assert worker_device() == torch.device("cpu")


@pytest.mark.parametrize(("watchdog", "timeout"), [(600.0, 1860), (1.0, 600)])
def test_all_groups_wait_longer_than_the_watchdog(
    watchdog: float, timeout: float, tmp_path: Path
) -> None:
    """Else the error of a waiting worker comes before the stack traces of the one that hangs."""
    module, results = "tests.training.workers.group_timeouts", tmp_path / "results.json"
    found = found_by(module, str(watchdog), workers=1, results=results)
    assert found == {"workers": timeout, "gradients": timeout}
    ending = OTHERS_SECONDS + BEFORE_END_SECONDS + FROZEN_SECONDS
    assert timeout > longest_allowance(watchdog) + ending

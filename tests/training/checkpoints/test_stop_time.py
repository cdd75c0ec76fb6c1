"""A checkpoint that takes longer than the launcher waits after SIGTERM."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.launch import start_torchrun, train
from tests.support.tiny import WARMUP, RunMaker, same_weights
from training.checkpoints.records import CheckpointOrigin, Commit, FileRecord, TrainerState
from training.checkpoints.stop_time import (
    report_first_checkpoint,
    seconds_after_sigterm,
    torchrun_can_wait_longer,
)
from training.settings.recipe import TrainingRecipe

STATE = TrainerState(
    step=500,
    images_seen=0,
    consumed={},
    errors=(),
    origin=CheckpointOrigin(stage="s", recipe_digest="r", dataset_digest="d"),
    world_size=8,
    zero_stage=1,
)
FILES = tuple(
    FileRecord(part="model", writer=rank, name=f"{rank}", bytes=3_650_000_000, sha256="")
    for rank in range(8)
)
COMMIT = Commit.of(STATE, FILES)

with_option = pytest.mark.skipif(
    not torchrun_can_wait_longer(), reason="torchrun of an older torch always waits 30 s"
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "CROSS_SIZE"):
        monkeypatch.delenv(name, raising=False)


@with_option
def test_the_launchers_time_is_known_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_after_sigterm() is None
    monkeypatch.setenv("CROSS_SIZE", "1")
    assert seconds_after_sigterm() == 30
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert seconds_after_sigterm() == 30
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    assert seconds_after_sigterm() == 300


def test_a_checkpoint_that_is_too_slow_for_a_stop_is_a_warning_with_the_remedies(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    report_first_checkpoint(COMMIT, seconds=29.0)
    report_first_checkpoint(COMMIT, seconds=41.04)
    fast, slow = caplog.records
    assert (fast.levelno, slow.levelno) == (logging.INFO, logging.WARNING)
    assert fast.getMessage() == "the checkpoint of step 500: 29.2 GB in 29.0 s"
    for part in (
        "empty file named stop in its folder",
        "29.2 GB in 41.0 s; workers are killed 30 s after SIGTERM",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=180",
        "--signal=TERM@180",
        "terminationGracePeriodSeconds: 180",
    ):
        assert part in slow.getMessage()


@with_option
def test_a_checkpoint_whose_writing_torchrun_kills_leaves_the_one_before_it_intact(
    undisturbed: TrainingRecipe,
    run_recipe: RunMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    process = start_torchrun(recipe, tmp_path, module="tests.training.workers.slow_checkpoint")
    checkpoints = Path(recipe.output) / "stages" / "warmup" / "checkpoints"
    committed, begun = "step-000010/trainer_state.json", "step-000020"
    eventually(lambda: (checkpoints / committed).exists(), process)
    eventually(lambda: (checkpoints / begun).exists(), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert "workers are killed 1 s after SIGTERM" in output
    assert sorted(path.parent.name for path in checkpoints.glob("*/trainer_state.json")) == [
        "step-000010"
    ]
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    train(recipe, tmp_path)
    starts = (checkpoints.parent / "starts.jsonl").read_text().splitlines()
    assert '"step":10' in starts[-1]
    assert same_weights(recipe, undisturbed, "warmup")


@with_option
def test_torchrun_has_the_variable_and_the_option() -> None:
    """The warning and docs/training.md name both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--shutdown-timeout" in shown and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in shown
